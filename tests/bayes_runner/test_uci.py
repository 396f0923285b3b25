"""The verb `uci`: splits, their summary, continuation, several processes."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest

from natgrad_apps.bayes import uci
from natgrad_apps.bayes.cli import main
from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import load_uci
from natgrad_apps.bayes.fitted import Schema, build_model
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.study_config import parse_splits
from natgrad_apps.bayes.variational import StepInfo
from tests.bayes_runner._uci import write_uci

FAST = ["--model.hidden", "[3]", "--training.epochs", "2", "--training.batch_size", "8", "--prediction.num_samples", "3"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of 20 rows and 2 splits under the name of yacht."""
    write_uci(tmp_path / "data" / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path / "data"))


def results(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "results.json").read_text())
    return found


def without_times(folder: Path) -> list[dict[str, object]]:
    splits = results(folder)["splits"]
    assert isinstance(splits, list)
    return [{k: v for k, v in s.items() if k != "seconds"} for s in splits]


def test_results_have_the_promised_keys_and_are_means_over_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uci", "--dataset", "yacht", "--splits", "0-1", *FAST, "--out", str(tmp_path / "run")]) == 0
    found = results(tmp_path / "run")
    splits = without_times(tmp_path / "run")
    assert [s["split"] for s in splits] == [0, 1]
    for name in ("rmse", "loglik_pointwise", "loglik_joint", "crps"):
        a, b = (float(str(s[name])) for s in splits)
        assert found[name] == {"mean": pytest.approx((a + b) / 2), "se": pytest.approx(abs(a - b) / 2)}  # sd = |a-b|/sqrt 2
    assert isinstance(found["seconds"], float)
    assert found["rows"] == {"train": 16, "test": 4}
    assert "2 splits, mean +- standard error: rmse" in capsys.readouterr().out
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


def test_the_standard_error_by_hand() -> None:
    assert uci.summary([1.0, 2.0, 6.0]) == {"mean": pytest.approx(3), "se": pytest.approx(math.sqrt(7 / 3))}
    assert math.isnan(uci.summary([1.0])["se"])


def test_an_interrupted_run_trains_only_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["uci", "--dataset", "yacht", "--splits", "0,1", *FAST]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    plain, steps = Fit.step, 0

    def stepping(self: Fit) -> StepInfo:
        nonlocal steps
        steps += 1
        if steps == 6:  # of 4 + 4: in the middle of the second split
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(Fit, "step", stepping)
    assert main([*words, "--out", str(tmp_path / "run")]) == 130
    assert f"natgrad-bayes uci --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "splits").iterdir()] == ["split_00.json"]
    assert steps == 6
    steps = 100
    assert main(["uci", "--resume", str(tmp_path / "run")]) == 0
    assert steps == 104  # the second split only
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    assert main(["uci", "--resume", str(tmp_path / "run")]) == 0
    assert "is complete" in capsys.readouterr().out


def test_a_damaged_split_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["uci", "--dataset", "yacht", "--splits", "0", *FAST, "--out", str(run)]) == 0
    (run / "results.json").unlink()
    (run / "splits" / "split_00.json").write_text("{")
    assert main(["uci", "--resume", str(run)]) == 2
    assert "remove it to have that training done again" in capsys.readouterr().err


def test_a_split_that_is_not_published_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["uci", "--dataset", "yacht", "--splits", "0-2", "--out", str(tmp_path / "run")]) == 2
    assert "yacht has the splits 0-1, got 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_numbers(tmp_path: Path) -> None:
    words = ["uci", "--dataset", "yacht", "--splits", "0-1", *FAST]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert main([*words, "--workers", "2", "--out", str(tmp_path / "two")]) == 0
    assert without_times(tmp_path / "one") == without_times(tmp_path / "two")


def test_the_published_width_is_taken_unless_another_is_asked_for() -> None:
    table = load_uci("yacht")
    schema = Schema("t", table.features, "y", (), 16, table.hidden)
    first = next(build_model(RecipeConfig(), schema, 0).parameters())
    assert first.shape == (5, 3)


def test_lists_of_splits() -> None:
    assert parse_splits("0-3") == [0, 1, 2, 3]
    assert parse_splits("7, 0,5-6,6") == [0, 5, 6, 7]
