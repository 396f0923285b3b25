"""The benchmark of noise: which policies play, when, and with what."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("mujoco")

from benchmarks import acktr_noise
from benchmarks._agents import preset


def test_the_mean_of_iterates_and_the_entropy_are_all_that_changes() -> None:
    config, base = acktr_noise.configured("Hopper", -0.5, 101, None), preset("Hopper")
    assert (config.agent.natural_gradient.iterate_averaging, config.agent.ent_coef, config.seed) == (0.05, -0.5, 101)
    options = replace(config.agent.natural_gradient, iterate_averaging=base.agent.natural_gradient.iterate_averaging)
    agent = replace(config.agent, natural_gradient=options, ent_coef=base.agent.ent_coef)
    assert replace(config, agent=agent, seed=base.seed, device=base.device) == base
    assert acktr_noise.configured("Hopper", None, 101, None).agent.ent_coef == base.agent.ent_coef


def test_each_moment_plays_both_policies_with_each_part_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acktr_noise, "EPISODES", 2)
    config = acktr_noise.configured("Hopper", 0.0, 100, 640)
    config = replace(config, agent=replace(config.agent, n_steps=16))
    played = acktr_noise.play(config)
    expected = [(m, a, f) for m in acktr_noise.MOMENTS for a in (False, True) for f in acktr_noise.FACTORS]
    assert [(one.moment, one.averaged, one.factor) for one in played] == expected
    assert len({one.mean for one in played}) == len(played)  # no two play alike
    [first, *_] = cells = acktr_noise.rows(config, [played, played])
    assert len(cells) == len(played)
    assert first[:5] == ["0", "256", "last", "0", f"{played[0].mean:.0f}, {played[0].mean:.0f}"]
