"""The benchmark on Atari games: what each learner is given, and what the shared table says of trainings."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from rich.console import Console
from stable_baselines3 import A2C

from benchmarks import acktr_atari
from benchmarks._agents import Job, Trained, comparison
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.environments import make_training


@pytest.mark.parametrize(("learner", "kind", "copies"), [("ACKTR", ACKTR, 32), ("A2C", A2C, 16)])
def test_learners_share_the_wrappers_and_have_their_own_settings(
    learner: str, kind: type, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def train(config: Any, settings: Any, build: Any, target: float) -> None:
        seen.update(config=config, settings=settings, build=build, target=target)

    monkeypatch.setattr(acktr_atari, "train", train)
    acktr_atari.run(Job("Pong", learner, 101), None, "cpu")
    config, settings = seen["config"], seen["settings"]
    assert (settings.id, settings.n_envs, settings.preprocessing, settings.frame_stack) == ("PongNoFrameskip-v4", copies, "atari", 4)
    assert (config.seed, config.total_timesteps, config.evaluation.every_steps, seen["target"]) == (101, 1_000_000, 100_000, 9.3)
    venv = make_training(dataclasses.replace(settings, n_envs=1), 0.99, 0)
    try:
        assert type(seen["build"](config, venv)) is kind
    finally:
        venv.close()


def test_breakout_has_twice_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(acktr_atari, "train", lambda config, *_: steps.append(config.total_timesteps))
    for asked in (None, 50):
        acktr_atari.run(Job("Breakout", "ACKTR", 100), asked, "cpu")
    assert steps == [2_000_000, 50]


def test_the_table_counts_trainings_that_never_reach_the_threshold_as_later_than_all() -> None:
    def trained(final: float, first_hit: int | None) -> Trained:
        return Trained(final, final + 1, first_hit, [], 1000, 2.0)

    found = {Job("Pong", "ACKTR", s): trained(float(s), hit) for s, hit in ((1, 300), (2, 100), (3, None))}
    found |= {Job("Pong", "A2C", s): trained(-1.0, hit) for s, hit in ((1, 300), (2, None), (3, None))}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison("Pong", found, ("ACKTR", "A2C", "PPO")))
    rows = [line.split("│") for line in console.export_text().splitlines() if "│" in line]
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in rows}
    assert cells["ACKTR"][:2] == ["3", "2.0"]
    assert cells["ACKTR"][4:] == ["300", "2"]
    assert cells["A2C"][4] == "not reached (1 of 3)"
    assert "PPO" not in cells
