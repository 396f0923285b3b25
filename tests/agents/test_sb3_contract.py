"""What users of SB3 rely on beyond learning: spaces, replaced settings at loading, callbacks, other environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.critic_noise import SMALLEST_VARIANCE, critic_scale
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, discrete, vectorized
from tests.agents.test_acktr import SMALL
from tests.agents.test_masking import Guarded

PLAIN = spaces.Discrete(3)


@pytest.mark.parametrize(
    ("actions", "observations", "message"),
    [
        (spaces.Discrete(3, start=5), None, r"actions are Discrete\(3, start=5\), which does not begin at 0.*TransformAction"),
        (spaces.MultiDiscrete([3, 2], start=[0, 1]), None, "actions are MultiDiscrete.* does not begin at 0"),
        (spaces.MultiDiscrete(np.array([[3, 2], [2, 2]])), None, "of 2 dimensions; legal: a vector of choices"),
        (PLAIN, spaces.Discrete(4, start=-1), "observations are Discrete.* does not begin at 0.*TransformObservation"),
        (PLAIN, spaces.Dict({"a": spaces.Discrete(4, start=2)}), "observations under 'a' are Discrete.* does not begin at 0"),
    ],
)
def test_counts_that_do_not_begin_at_zero_are_refused(actions: Any, observations: Any, message: str) -> None:
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ConfigError, match=message):
        ACKTR(policy, vectorized(lambda: Chain(actions, observations)), **SMALL)


@pytest.mark.parametrize("how", ["argument", "custom_objects"])
def test_other_options_at_loading_take_effect(how: str, tmp_path: Path) -> None:
    ACKTR("MlpPolicy", discrete(), **SMALL).learn(16).save(tmp_path / "agent.zip")
    options = {"damping": 0.5, "momentum": 0.3, "weight_decay": 0.1}
    given = {"natural_gradient": options} if how == "argument" else {"custom_objects": {"natural_gradient": options}}
    model = ACKTR.load(tmp_path / "agent.zip", **given)
    assert model.optimizer.preconditioner.damping_value.item() == 0.5
    assert [(group["momentum"], group["weight_decay"]) for group in model.optimizer.param_groups] == [(0.3, 0.1)]


def test_a_network_saved_without_value_normalization_cannot_get_it(tmp_path: Path) -> None:
    ACKTR("MlpPolicy", discrete(), **SMALL).save(tmp_path / "agent.zip")
    with pytest.raises(ConfigError, match="value_normalization is part of the network"):
        ACKTR.load(tmp_path / "agent.zip", natural_gradient={"value_normalization": {}})
    ACKTR("MlpPolicy", discrete(), natural_gradient={"value_normalization": {}}, **SMALL).save(tmp_path / "normalized.zip")
    with pytest.raises(ConfigError, match="value_normalization is part of the network"):
        ACKTR.load(tmp_path / "normalized.zip", natural_gradient={"value_normalization": None})
    with pytest.raises(RuntimeError, match=r"size mismatch for value_net\.weight"):
        ACKTR.load(tmp_path / "agent.zip", custom_objects={"policy_kwargs": {"net_arch": [5]}})


class Locals(BaseCallback):
    """Names of the local variables at the steps and at the end of a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.at_step: set[str] = set()
        self.at_end: set[str] = set()

    def _on_step(self) -> bool:
        self.at_step = set(self.locals)
        return True

    def _on_rollout_end(self) -> None:
        self.at_end = set(self.locals)


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MaskableMlpPolicy"])
def test_callbacks_find_the_names_of_sb3(policy: str) -> None:
    ours, theirs = Locals(), Locals()
    env = vectorized(lambda: Guarded(PLAIN)) if policy.startswith("Maskable") else discrete()
    ACKTR(policy, env, n_steps=8, device="cpu").learn(32, ours)
    A2C("MlpPolicy", discrete(truncated=True), n_steps=8, device="cpu").learn(32, theirs)
    internal = {"self", "done", "terminal_obs", "terminal_value"}
    assert theirs.at_step - ours.at_step <= internal
    assert theirs.at_end - ours.at_end <= internal


def test_a_policy_with_masks_refuses_an_environment_without() -> None:
    model = ACKTR("MaskableMlpPolicy", vectorized(lambda: Guarded(PLAIN)), n_steps=8, device="cpu")
    with pytest.raises(ConfigError, match="has no method action_masks"):
        model.set_env(discrete())


def test_normalize_advantage_is_a_boolean() -> None:
    with pytest.raises(ConfigError, match="normalize_advantage must be True or False, got 'false'"):
        ACKTR("MlpPolicy", discrete(), normalize_advantage="false")  # type: ignore[arg-type]


def test_a_critic_without_residual_has_the_smallest_variance() -> None:
    model = ACKTR("MlpPolicy", discrete(), **SMALL)
    model.rollout_buffer.reset()
    model._value_variance = 0.0
    scale, weight = critic_scale(model)
    np.testing.assert_allclose((scale**2, 1 / weight), SMALLEST_VARIANCE)
