"""Iterate averaging: the mean itself, who plays with it, and that learning does not know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from natgrad_apps.agents import ACKTR, NaturalGradientOptions
from natgrad_apps.agents.evaluation import evaluate
from natgrad_apps.agents.masking import player
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, continuous, discrete, vectorized
from tests.agents.test_acktr import SMALL, Recorder, weights

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)


class Iterates(Recorder):
    """Keeps the weights after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def keep(self) -> None:
        assert isinstance(self.model, ACKTR)
        if self.model._n_updates:
            self.seen.append(weights(self.model).double())


def agent(share: float | None, env: Any = None, policy: str = "MlpPolicy", **options: Any) -> ACKTR:
    options = {"iterate_averaging": share, **options}
    return ACKTR(policy, continuous() if env is None else env, natural_gradient=options, **SMALL)


def mean_of(model: ACKTR) -> torch.Tensor:
    assert isinstance(model.averaged_policy, ActorCriticPolicy)
    return torch.nn.utils.parameters_to_vector(model.averaged_policy.parameters()).detach().double()


def always(model: ACKTR, logits: list[float]) -> None:
    """From now on the policy that plays has these logits whatever it sees."""
    assert model.averaged_policy is not None
    head = model.averaged_policy.action_net
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))


def actions(model: ACKTR) -> Any:
    return model.predict(OBSERVATIONS, deterministic=True)[0]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 1e-9])
def test_the_mean_is_that_of_the_equation(share: float) -> None:
    """In closed form: the share of iterate ``j`` is proportional to ``Gamma(j + eta) / Gamma(j)``, ``eta = 1 / share - 1``."""
    model, iterates = agent(share), Iterates()
    model.learn(16 * 8, iterates)
    assert len(iterates.seen) == 8
    eta, j = 1 / share - 1, torch.arange(1, 9, dtype=torch.float64)
    shares = torch.softmax(torch.lgamma(j + eta) - torch.lgamma(j), dim=0)
    expected = shares @ torch.stack(iterates.seen)
    if share == 1:
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / 8))
    torch.testing.assert_close(mean_of(model), expected, rtol=1e-5, atol=1e-7)
    moved = (expected - iterates.seen[-1]).abs().max()
    assert moved < 1e-6 if share < 1e-6 else moved > 1e-4


def test_learning_does_not_know_of_the_mean() -> None:
    plain, averaged = agent(None).learn(96), agent(0.2).learn(96)
    assert torch.equal(weights(plain), weights(averaged))
    assert plain.averaged_policy is None
    assert not np.array_equal(actions(plain), actions(averaged))


def test_predict_and_evaluations_have_the_mean() -> None:
    model = agent(0.2, discrete()).learn(96)
    always(model, [0.0, 0.0, 50.0])  # the action 2, which is rewarded by 2, ten times
    assert (actions(model) == 2).all()
    assert evaluate(model, discrete(), 4, 0, deterministic=False).returns == (20.0,) * 4
    assert not (model.policy.predict(OBSERVATIONS, deterministic=False)[0] == 2).all()


def test_masked_policies_play_with_the_mean() -> None:
    class Masked(Chain):
        def action_masks(self) -> Any:
            return np.array([True, False, True])

    env = vectorized(lambda: Masked(spaces.Discrete(3)))
    model = agent(0.2, env, "MaskableMlpPolicy").learn(96)
    always(model, [0.0, 90.0, 50.0])  # 1 is not legal
    observation = env.reset()
    assert isinstance(observation, np.ndarray)
    chosen, _ = player(model, env).predict(observation)
    assert (chosen == 2).all()


def test_the_mean_is_saved_and_loaded(tmp_path: Path) -> None:
    model = agent(0.2, value_normalization={}).learn(96)
    model.save(tmp_path / "agent.zip")
    loaded = ACKTR.load(tmp_path / "agent.zip", continuous(), device="cpu")
    assert torch.equal(mean_of(loaded), mean_of(model))
    assert np.array_equal(actions(loaded), actions(model))
    other = agent(0.2, value_normalization={})
    other.set_parameters(str(tmp_path / "agent.zip"))
    assert np.array_equal(actions(other), actions(model))


def test_averaging_can_begin_and_end_with_loading(tmp_path: Path) -> None:
    agent(None).learn(96).save(tmp_path / "plain.zip")
    begun = ACKTR.load(tmp_path / "plain.zip", device="cpu", natural_gradient={"iterate_averaging": 0.2})
    assert torch.equal(mean_of(begun), weights(begun).double())
    agent(0.2).learn(96).save(tmp_path / "averaged.zip")
    ended = ACKTR.load(tmp_path / "averaged.zip", device="cpu", natural_gradient={})
    assert ended.averaged_policy is None
    assert np.array_equal(actions(ended), ended.policy.predict(OBSERVATIONS, deterministic=True)[0])


@pytest.mark.parametrize("value", [0, 1.1, "much", True])
def test_a_share_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="iterate_averaging must be"):
        NaturalGradientOptions(iterate_averaging=value)
