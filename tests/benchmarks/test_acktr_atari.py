"""The benchmark on Atari games: what each learner is given, and what the shared table says of trainings."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import A2C

from benchmarks import _comparisons, acktr_atari
from benchmarks._agents import train_in
from benchmarks._comparisons import COLUMNS, publish, rows
from benchmarks._records import Job, Trained
from natgrad_apps._resources import config_path
from natgrad_apps.agents import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_training
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file


@pytest.mark.parametrize(("learner", "kind", "copies"), [("ACKTR", ACKTR, 32), ("A2C", A2C, 16)])
def test_learners_share_the_wrappers_and_have_their_own_settings(
    learner: str, kind: type, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def train(config: Any, settings: Any, build: Any, target: float) -> None:
        seen.update(config=config, settings=settings, build=build, target=target)

    def train_in(folder: Path, config: Any, target: float) -> None:
        train(config, config.environment, build_agent, target)
        assert folder == Path("out/runs/Pong_ACKTR_101")

    monkeypatch.setattr(acktr_atari, "train", train)
    monkeypatch.setattr(acktr_atari, "train_in", train_in)
    acktr_atari.run(Job("Pong", learner, 101), Path("out"), None, "cpu")
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
        acktr_atari.run(Job("Breakout", "A2C", 100), Path("out"), asked, "cpu")
    assert steps == [2_000_000, 50]


def test_a_training_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    config = schema.read(TrainConfig, read_file(config_path("agents", "cartpole")))
    evaluation = dataclasses.replace(config.evaluation, every_steps=512, episodes=2, final_episodes=2, n_envs=2)
    config = dataclasses.replace(config, total_timesteps=1536, evaluation=evaluation, checkpoint_every=512, threads=1)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)  # a training that was cut off before its first checkpoint begins anew
    (folder / "config.yaml").write_text("cut off\n")
    done = train_in(folder, config, -1.0)
    assert done.steps == 1536
    assert [step for step, _ in done.curve] == [512, 1024, 1536]
    assert done.first_hit == 512
    shutil.rmtree(folder / "checkpoint" / "step_000000001536")
    (folder / "results.json").unlink()
    again = train_in(folder, config, -1.0)
    assert (again.final, again.best, again.curve) == (done.final, done.best, done.curve)
    assert json.loads((folder / "results.json").read_text())["sessions"] == 2


def test_tables_say_what_the_trainings_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(final: float, first_hit: int | None) -> Trained:
        return Trained(final, math.nan if final < 0 else final + 1, first_hit, [], 1000, 2.0)

    found = {Job("Pong", "ACKTR", s): trained(float(s), hit) for s, hit in ((1, 300), (2, 100), (3, None))}
    found |= {Job("Pong", "A2C", s): trained(-1.0, hit) for s, hit in ((3, 300), (2, None), (1, None))}
    cells = {row[1]: row for row in rows(found, ("ACKTR", "A2C", "PPO"))}
    assert list(cells) == ["ACKTR", "A2C"]
    named = dict(zip(COLUMNS, cells["ACKTR"], strict=True))
    assert (named["environment"], named["seeds"], named["IQM"], named["seconds"]) == ("Pong", "1 2 3", "2.0", "2")
    assert named["steps to the threshold, by seed"] == "300, 100, never"
    assert (named["last policy, by seed"], named["mean"], named["best policy"]) == ("1.0, 2.0, 3.0", "2.0 ± 0.6", "3.0 ± 0.6")
    assert dict(zip(COLUMNS, cells["A2C"], strict=True))["best policy"] == "not kept"
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- here: begin -->\nold\n<!-- here: end -->\nbelow\n")
    monkeypatch.setattr(_comparisons, "PAGE", page)
    publish("here", "command", COLUMNS, cells.values(), "torch 2.13.0")
    lines = page.read_text().splitlines()
    assert lines[:2] == ["above", "<!-- here: begin -->"]
    assert lines[2] == "`command`; torch 2.13.0."
    assert lines[4].split(" | ")[1] == "learner"
    assert len(lines) == 10
    assert lines[7].split(" | ")[7] == "never, never, 300"
