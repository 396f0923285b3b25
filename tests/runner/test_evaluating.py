"""The verb `evaluate`: groups of seeds, films that cannot be made, numbers for people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from natgrad_apps.agents import evaluating
from natgrad_apps.agents.cli import main
from natgrad_apps.agents.evaluation import Evaluation
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.words import counted, number

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def group(finished_run: Path, tmp_path: Path) -> Path:
    """Two seeds whose agents are the same one."""
    folder = tmp_path / "group"
    for seed in (0, 1):
        shutil.copytree(finished_run, folder / f"seed_{seed}")
        (folder / f"seed_{seed}.yaml").write_text((finished_run / "config.yaml").read_text())
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_a_group_is_evaluated_seed_by_seed(group: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def rising(agent: object, venv: object, *rest: Any, **named: Any) -> Evaluation:
        returns.append(returns[-1] + 4.0)
        return Evaluation((returns[-1],), (7,), 0.5, 3, True)

    returns = [6.0]
    monkeypatch.setattr(evaluating, "evaluate", rising)
    assert main(["evaluate", str(group), "--episodes", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed_0: mean return 10.00, standard deviation 0.00 over 1 episode (agent of step 1,280)"
    assert lines[2].startswith("seed_1: mean return 14.00")
    # The deviation of {10, 14} with one degree of freedom is 2 sqrt(2); over the root of 2 seeds that is 2.
    assert lines[4] == "2 seeds: mean return 12.00 +- 2.00 (standard error), interquartile mean 12.00"
    assert [read(group / f"seed_{s}")["evaluation"]["mean_return"] for s in (0, 1)] == [10, 14]
    summary = read(group)
    expected = {"mean_return": 12, "se_return": 2, "iqm": 12, "per_seed": [10, 14], "episodes_per_seed": 1, "deterministic": True}
    assert summary["evaluation"] == expected
    assert (list(summary["runs"]), summary["runs"]["seed_1"]["steps"]) == (["seed_0", "seed_1"], 1280)
    out = tmp_path / "elsewhere"
    assert main(["evaluate", str(group), "--episodes", "1", "--out", str(out)]) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.json")) == [
        "evaluation.json",
        "seed_0/evaluation.json",
        "seed_1/evaluation.json",
    ]


def test_a_group_with_a_seed_that_has_no_agent_is_refused_before_any_is_evaluated(group: Path, capsys: Capture) -> None:
    shutil.rmtree(group / "seed_1" / "checkpoint")
    assert main(["evaluate", str(group), "--episodes", "1"]) == 2
    captured = capsys.readouterr()
    assert "cannot be evaluated as a group: " in captured.err
    assert "seed_1' is neither a run folder with a checkpoint nor a checkpoint; evaluate the others one by one" in captured.err
    assert not captured.out
    assert not list(group.rglob("evaluation.json"))


@pytest.mark.parametrize("seeds", [1, 2])
def test_results_stay_when_no_film_can_be_made(
    seeds: int, group: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> Iterator[Path]:
        raise ConfigError("no pictures here")

    monkeypatch.setattr(evaluating, "record_films", refuse)
    path = group if seeds == 2 else group / "seed_0"
    assert main(["evaluate", str(path), "--episodes", "2", "--video", "1"]) == 2
    captured = capsys.readouterr()
    assert "no pictures here" in captured.err
    assert "over 2 episodes" in captured.out
    assert len(list(group.rglob("evaluation.json"))) == (3 if seeds == 2 else 1)
    assert np.isfinite(read(path)["evaluation"]["mean_return"])


def test_numbers_are_short() -> None:
    assert [number(v) for v in (-21.0, 0.0, 1e30, -2.5e7, 9359.8, 0.00123, 7e-15)] == [
        "-21.00",
        "0.00",
        "1e+30",
        "-2.5e+07",
        "9359.80",
        "0.00123",
        "0.00",
    ]
    assert [counted(n, "episode") for n in (1, 2, 1000)] == ["1 episode", "2 episodes", "1,000 episodes"]
