"""What an update did, over a rollout and over parts of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.backtracking import Backtracking
from natgrad_apps.agents.heads import Change, Heads
from natgrad_apps.agents.measuring import Comparison, States
from natgrad_apps.errors import ConfigError
from tests.agents._environments import Chain, continuous, discrete, vectorized
from tests.agents.test_acktr import SMALL, record
from tests.agents.test_masking import guarded

SEEN = spaces.Dict({"vector": spaces.Box(-1.0, 1.0, (3,), np.float32), "image": spaces.Box(0, 255, (1, 40, 40), np.uint8)})
MEMORY = {"net_arch": [8], "lstm_hidden_size": 5}
POLICIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "MlpPolicy": (lambda: continuous(4), {}),
    "MultiInputPolicy": (lambda: vectorized(lambda: Chain(spaces.Discrete(3), SEEN), 4), {}),
    "MaskableMlpPolicy": (lambda: guarded("discrete", 4), {}),
    "MlpLstmPolicy": (lambda: discrete(4), {"policy_kwargs": MEMORY}),
    "MaskableMlpLstmPolicy": (lambda: guarded("multi_discrete", 4), {"policy_kwargs": MEMORY}),
}


def after_a_rollout(policy: str) -> tuple[ACKTR, States]:
    make, options = POLICIES[policy]
    model = ACKTR(policy, make(), **{**SMALL, **options})
    model.learn(2 * 4 * SMALL["n_steps"])
    batch = model.batch()
    actions = batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions
    return model, States(batch.observations, actions, model.context)


def disturb(model: ACKTR) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.policy.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_parts_together_are_the_whole(policy: str, stride: int) -> None:
    """Every state is in one part, and is seen there with its own mask and memory: the mean over the parts is that over all states."""
    model, states = after_a_rollout(policy)
    whole = Comparison(model.policy, states, 0.7, None, None)
    parts = [Comparison(model.policy, states.every(stride, first), 0.7, None, None) for first in range(stride)]
    disturb(model)

    expected, found = whole(), [part() for part in parts]

    assert expected.actor_kl > 1e-4
    assert expected.critic_kl > 1e-4
    for name in ("actor_kl", "critic_kl"):
        values = torch.stack([getattr(change, name) for change in found])
        torch.testing.assert_close(values.mean(), getattr(expected, name), rtol=1e-4, atol=0)
        assert values.std() > 0, "parts that are equal would be the whole again"


def test_known_heads_spare_the_pass_and_change_nothing() -> None:
    model, states = after_a_rollout("MlpPolicy")
    passes: list[int] = []
    model.policy.value_net.register_forward_hook(lambda *_: passes.append(1))
    values, _, _ = model.policy.evaluate_actions(states.observations, states.actions)
    known = Comparison(model.policy, states, 0.7, Heads.of(model.policy, values, 0.7), None)
    assert len(passes) == 1
    own = Comparison(model.policy, states, 0.7, None, None)
    assert len(passes) == 2
    assert states.every(1, 3) is states
    disturb(model)
    for name, value in vars(own()).items():
        torch.testing.assert_close(getattr(known(), name), value)


@pytest.mark.parametrize(("policy", "rows"), [("MlpPolicy", 1), ("MlpLstmPolicy", 8)])
def test_one_row_or_environment_at_least_is_left(policy: str, rows: int) -> None:
    model, states = after_a_rollout(policy)
    part = states.every(1000, 7)
    assert len(part.actions) == rows
    assert part.pass_through(model.policy, 1.0).critic.num_terms == rows


@pytest.mark.parametrize("policy", ["MlpPolicy", "MaskableMlpLstmPolicy"])
def test_a_check_of_a_part_shortens_what_the_whole_would(policy: str) -> None:
    make, options = POLICIES[policy]
    limits = {"kl_limit": 2e-4, "max_checks": 4}
    step = {"name": "kl_trust_region", "radius": 0.1}
    seen: dict[int, Tensor] = {}
    for stride in (1, 4):
        natural_gradient = {"step": step, "backtracking": {**limits, "stride": stride}}
        rows = record(ACKTR(policy, make(), natural_gradient=natural_gradient, **{**SMALL, **options}), 10 * 4 * SMALL["n_steps"])
        seen[stride] = torch.tensor([row["train/measured_kl"] for row in rows])
    free = record(ACKTR(policy, make(), natural_gradient={"step": step}, **{**SMALL, **options}), 10 * 4 * SMALL["n_steps"])
    assert min(row["train/measured_kl"] for row in free) > 2 * limits["kl_limit"], "the limit must act for this to test anything"
    assert seen[1].max() <= limits["kl_limit"] * 1.05
    assert limits["kl_limit"] / 3 < seen[4].mean() < limits["kl_limit"] * 3


def test_a_check_costs_two_passes_of_its_part() -> None:
    """One before the step and one after it; nothing is measured here beside."""
    rows: list[int] = []
    options = {"backtracking": {"kl_limit": 1e3, "max_checks": 1, "stride": 4}, "measure_kl": False}
    model = ACKTR("MlpPolicy", discrete(4), natural_gradient=options, **SMALL)
    model.policy.action_net.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    model.learn(4 * SMALL["n_steps"])
    assert rows == [4] * SMALL["n_steps"] + [32, 8, 8]


def test_a_change_is_the_mean_over_processes() -> None:
    class Double:
        def mean(self, values: list[Tensor]) -> list[Tensor]:
            return [2 * value for value in values]

    model, states = after_a_rollout("MlpPolicy")
    alone = Comparison(model.policy, states, 0.7, None, None)
    shared = Comparison(model.policy, states, 0.7, None, Double())  # type: ignore[arg-type]
    disturb(model)
    change = shared()
    assert isinstance(change, Change)
    torch.testing.assert_close(change.actor_kl, 2 * alone().actor_kl)


@pytest.mark.parametrize("stride", [0, -1, 1.5])
def test_bad_strides_are_refused(stride: Any) -> None:
    with pytest.raises(ConfigError, match="stride must be"):
        Backtracking(stride=stride)
