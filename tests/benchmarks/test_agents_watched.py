"""What the benchmarks of agents call the best policy: the one that played best, whoever plays."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import _agents
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import AgentConfig, EnvironmentConfig, EvaluationConfig, TrainConfig
from natgrad_apps.agents.options import NaturalGradientOptions


@pytest.mark.parametrize("share", [None, 0.5])
def test_the_best_policy_is_the_one_that_played_best(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations with the scores 10, 20, 5, 5; then the last policy, and the one of the second."""
    scores, played = iter([10.0, 20.0, 5.0, 5.0, 4.0, 19.0]), []

    def evaluate(model: Any, *_: Any, **__: Any) -> Any:
        played.append(torch.nn.utils.parameters_to_vector(model.playing_policy.parameters()).detach().clone())
        return SimpleNamespace(mean=next(scores))

    monkeypatch.setattr(_agents, "evaluate", evaluate)
    settings = EnvironmentConfig(n_envs=2, normalize_observations=True)
    agent = AgentConfig(n_steps=16, natural_gradient=NaturalGradientOptions(iterate_averaging=share))
    config = TrainConfig(settings, agent, EvaluationConfig(every_steps=32, n_envs=1), total_timesteps=128, device="cpu")

    def build(config: TrainConfig, venv: Any) -> ACKTR:
        return build_agent(replace(config, agent=agent), venv)

    done = _agents.train(config, settings, build, target=15.0)
    assert [score for _, score in done.curve] == [10.0, 20.0, 5.0, 5.0]
    assert (done.final, done.best, done.first_hit) == (4.0, 19.0, done.curve[1][0])
    assert torch.equal(played[4], played[3])
    assert torch.equal(played[5], played[1])
    assert not torch.equal(played[5], played[4])
