"""The benchmark of ACKTR's parts: what its variants change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")

from benchmarks import acktr_ablations
from benchmarks._agents import GAMES, TUNED, preset
from benchmarks._records import Job
from benchmarks._variants import variants


@pytest.mark.parametrize(("environment", "variant"), [(e, v) for e in ("HalfCheetah", "Breakout") for v in variants(e)])
def test_a_variant_changes_what_it_says_and_nothing_else(environment: str, variant: str) -> None:
    job = Job(environment, variant, 100)
    config, base = acktr_ablations.configured(job, 2048), preset(environment)
    assert (config.seed, config.total_timesteps, config.environment) == (100, 2048, base.environment)
    given = variants(environment)[variant]
    changed = {name for name in vars(base.agent) if getattr(config.agent, name) != getattr(base.agent, name)}
    assert changed == {*given.agent, *(["natural_gradient"] if given.natural_gradient else [])}
    ours, theirs = config.agent.natural_gradient, base.agent.natural_gradient
    options = {f.name for f in dataclasses.fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)}
    assert options == set(given.natural_gradient)


@pytest.mark.parametrize("name", [*TUNED, "Ant"])
def test_presets_of_an_environment_train_in_it(name: str) -> None:
    assert preset(name).environment.id == name + ("NoFrameskip-v4" if name in GAMES else "-v5")


@pytest.mark.parametrize("game", ["Pong", "Qbert"])
def test_games_have_the_wrappers_of_atari(game: str) -> None:
    settings = preset(game).environment
    assert (settings.id, settings.preprocessing, settings.n_envs) == (f"{game}NoFrameskip-v4", "atari", 32)


def test_variants_of_another_environment_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        acktr_ablations.main(["--out", str(tmp_path / "new"), "--environment", "Pong", "--variants", "preset", "gae"])
    assert "no variants ['gae'] for Pong; legal: preset, batch_160" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
