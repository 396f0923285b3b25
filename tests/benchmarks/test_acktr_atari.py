"""The benchmark on Atari games: what each learner is given, and what the shared table says of trainings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import A2C

from benchmarks import _comparisons, acktr_atari
from benchmarks._agents import Job, Trained
from benchmarks._comparisons import COLUMNS, publish, rows
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


def test_tables_say_what_the_trainings_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(final: float, first_hit: int | None) -> Trained:
        return Trained(final, final + 1, first_hit, [], 1000, 2.0)

    found = {Job("Pong", "ACKTR", s): trained(float(s), hit) for s, hit in ((1, 300), (2, 100), (3, None))}
    found |= {Job("Pong", "A2C", s): trained(-1.0, hit) for s, hit in ((3, 300), (2, None), (1, None))}
    cells = {row[1]: row for row in rows(found, ("ACKTR", "A2C", "PPO"))}
    assert list(cells) == ["ACKTR", "A2C"]
    named = dict(zip(COLUMNS, cells["ACKTR"], strict=True))
    assert (named["environment"], named["seeds"], named["IQM"], named["seconds"]) == ("Pong", "1 2 3", "2.0", "2")
    assert named["steps to the threshold, by seed"] == "300, 100, never"
    assert (named["last policy, by seed"], named["mean"], named["best policy"]) == ("1.0, 2.0, 3.0", "2.0 ± 0.6", "3.0 ± 0.6")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- here: begin -->\nold\n<!-- here: end -->\nbelow\n")
    monkeypatch.setattr(_comparisons, "PAGE", page)
    publish("here", "command", COLUMNS, cells.values(), ["torch"])
    lines = page.read_text().splitlines()
    assert lines[:2] == ["above", "<!-- here: begin -->"]
    assert lines[2].startswith("`command`; torch ")
    assert lines[4].split(" | ")[1] == "learner"
    assert len(lines) == 10
    assert lines[7].split(" | ")[7] == "never, never, 300"
