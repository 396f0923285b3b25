"""`natgrad-bayes` from outside: exit codes, messages, run folders, interruption and continuation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from natgrad_apps.bayes import snapshot
from natgrad_apps.bayes.cli import main
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.variational import StepInfo
from natgrad_apps.runner import metrics

Capture = pytest.CaptureFixture[str]
PICTURES = {"reliability.png", "uncertainty.png", "training.png"}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics.read_rows(folder / "metrics.csv")]


def test_a_run_folder_is_complete(finished_run: Path, finished_classes: Path) -> None:
    for folder, pictures in ((finished_run, {*PICTURES, "predictive_band.png"}), (finished_classes, PICTURES)):
        assert {"config.yaml", "metrics.csv", "results.json", "log.txt"} <= files(folder)
        assert {p.name for p in (folder / "figures").iterdir()} == pictures
        assert all(p.stat().st_size > 10_000 for p in (folder / "figures").iterdir())
        assert any("tfevents" in name for name in files(folder / "tensorboard"))
        assert not [name for name in files(folder) if name.endswith(".tmp")]
        assert "done at step 18" in (folder / "log.txt").read_text()


def test_results_and_metrics_have_the_promised_keys(finished_run: Path, finished_classes: Path) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    assert set(results["test"]) == {"rmse", "nll", "loglik_pointwise", "loglik_joint", "crps"}
    assert results["test"]["nll"] == -results["test"]["loglik_pointwise"]
    assert set(results["foreign"]) == {"inputs", "auroc", "fpr95"}
    assert (results["rows"], results["steps"], results["sessions"]) == ({"train": 54, "test": 6}, 18, 1)
    assert results["learned"]["noise_std"] > 0
    assert results["seconds"] >= results["training_seconds"] > 0
    assert set(json.loads((finished_classes / "results.json").read_text())["test"]) >= {"accuracy", "nll", "brier", "ece"}
    table = metrics.read_rows(finished_run / "metrics.csv")
    assert [int(row["step"]) for row in table] == [3, 6, 9, 12, 15, 18]
    for row in table:
        total = float(row["train/expected_nll"]) + float(row["train/kl"])
        assert float(row["train/nelbo"]) == pytest.approx(total, rel=1e-6)  # single precision


def test_training_learns(finished_run: Path, tables: Path) -> None:
    points = metrics.column(metrics.read_rows(finished_run / "metrics.csv"), "train/nelbo")
    assert points[-1][1] < points[0][1]
    y = pd.read_csv(tables / "line.csv")["y"]
    assert json.loads((finished_run / "results.json").read_text())["test"]["rmse"] < y.std()


def test_the_resolved_configuration_repeats_the_run(finished_run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert rows(finished_run) == rows(tmp_path / "again")
    first, second = (json.loads((folder / "results.json").read_text())["test"] for folder in (finished_run, tmp_path / "again"))
    assert first == second


def stop_at(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen right after a step."""
    plain = Fit.step

    def stepping(self: Fit) -> StepInfo:
        info = plain(self)
        if self.steps_done == step:
            act()
        return info

    monkeypatch.setattr(Fit, "step", stepping)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_bit_for_bit(
    number: signal.Signals, finished_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stopped run"
    with monkeypatch.context() as patch:
        stop_at(10, lambda: os.kill(os.getpid(), number), patch)
        assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(out)]) == 130
    error = capsys.readouterr().err
    assert f"natgrad-bayes train --resume '{out}'" in error
    assert not (out / "results.json").exists()
    assert main(["train", "--resume", str(out)]) == 0
    assert rows(out) == rows(finished_run)
    again, whole = (json.loads((folder / "results.json").read_text()) for folder in (out, finished_run))
    assert again["test"] == whole["test"]
    assert (again["sessions"], again["steps"]) == (2, 18)
    assert main(["train", "--resume", str(out)]) == 0
    assert "is complete" in capsys.readouterr().out


@pytest.mark.parametrize("step", [2, 9])  # before and after the first periodic checkpoint, of step 7
def test_a_failure_keeps_the_traceback_and_the_checkpoint(
    step: int, finished_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(step, fail, patch)
        assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: out of luck" in error
    assert "--resume" in error
    assert "Traceback" not in error
    assert "Traceback" in (out / "log.txt").read_text()
    assert main(["train", "--resume", str(out)]) == 0
    assert rows(out) == rows(finished_run)


def test_a_posterior_that_predicts_no_numbers_is_a_failure(
    finished_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "evaluate", lambda _: {"rmse": float("nan"), "crps": 1.0})
    assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(tmp_path / "run")]) == 1
    assert "rmse not finite: the training diverged; lower inference.lr" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.filterwarnings("default")
def test_warnings_are_kept_in_the_log(finished_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(5, lambda: warnings.warn("mind the step", RuntimeWarning, stacklevel=1), monkeypatch)
    assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert "RuntimeWarning: mind the step" in (tmp_path / "run" / "log.txt").read_text()
    assert "RuntimeWarning: mind the step" in capsys.readouterr().err


def test_print_config_resolves_and_writes_nothing(
    small_config: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--inference.lr", "1e-3", "--training.epochs", "1e1", "--inference.options.initial_batches", "3"]
    assert main(["train", "--config", str(small_config), "--print_config", *words]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["inference"]["lr"], shown["training"]["epochs"], shown["inference"]["options"]) == (0.001, 10, {"initial_batches": 3})
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--out DIR is needed"),
        (["trane"], "did you mean 'train'"),
        (["train", "--training.epoch", "3"], "did you mean '--training.epochs'"),
        (["train", "--training.epochs", "0", "--out", "OUT"], "training.epochs (command line): got '0'; legal: a whole number >= 1"),
        (["train", "--method", "noisy_kfak", "--out", "OUT"], "did you mean 'noisy_kfac'"),
        (["train", "--inference.options.dekay", "0.9", "--out", "OUT"], "did you mean 'decay'"),
        (["train", "--inference.temperature", "0", "--out", "OUT"], "inference.temperature"),
        (["train", "--inference.options.statistics_period", "0", "--out", "OUT"], "noisy_kfac"),
        (["train", "--dataset", "concret", "--out", "OUT"], "did you mean 'concrete'"),
        (["train", "--dataset", "none.csv", "--out", "OUT"], "there is no table 'none.csv'"),
        (["train", "--dataset", "LINE", "--out", "OUT"], "table.target is needed"),
        (["train", "--dataset", "LINE", "--table.target", "z", "--out", "OUT"], "unknown column of line.csv 'z'"),
        (["train", "--dataset", "LINE", "--table.target", "y", "--table.exclude", "[a, b]", "--out", "OUT"], "no input column"),
        (["train", "--config", "diabets", "--out", "OUT"], "did you mean 'diabetes'"),
        (["train", "--resume", "OUT"], "there is no run folder"),
        (["train", "--resume", "OUT", "--method", "vadam"], "drop --method"),
        (["uci", "--dataset", "concret", "--out", "OUT"], "did you mean 'concrete'"),
        (["uci", "--dataset", "yacht", "--splits", "3-1", "--out", "OUT"], "'3-1' is no list"),
        (["uci", "--dataset", "yacht", "--splits", "a", "--out", "OUT"], "'a' is no list"),
        (["uci", "--method", "kfac", "--out", "OUT"], "unknown method 'kfac'"),
        (["uci", "--resume", "OUT"], "there is no run folder"),
        (["check", "--inference.decay", "1"], "a number in [0, 1)"),
        (["evaluate", "OUT"], "give a run folder or a checkpoint"),
        (["evaluate", "OUT", "--samples", "0"], "--samples (command line): got '0'"),
        (["predict", "OUT"], "--data FILE is needed"),
        (["plot", "OUT"], "there is no run folder"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    arguments: list[str], message: str, tables: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("OUT", str(tmp_path / "out")).replace("LINE", str(tables / "line.csv")) for word in arguments]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("natgrad-bayes: error: ")
    assert message in error
    assert "Traceback" not in error
    assert not files(tmp_path)


def test_a_full_folder_and_a_changed_configuration_are_refused(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--out", str(finished_run)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    (copy / "results.json").unlink()
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("epochs: 6", "epochs: 7"))
    assert main(["train", "--resume", str(copy)]) == 2
    assert "a run keeps its settings" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    state = copy / "checkpoint" / "step_000000000018" / snapshot.STATE
    state.write_bytes(state.read_bytes()[:-10])
    assert main(["evaluate", str(copy)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_changed_data_are_told(finished_run: Path, tables: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    frame = pd.read_csv(tables / "line.csv")
    path = tables / "line.csv"
    before = path.read_bytes()
    try:
        frame.assign(a=frame.a + 1).to_csv(path, index=False)
        assert main(["evaluate", str(copy)]) == 2
    finally:
        path.write_bytes(before)
    assert "has changed since the checkpoint was written" in capsys.readouterr().err


def test_evaluate_repeats_the_results_and_measures_new_rows(finished_run: Path, tables: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(finished_run), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["test"] == json.loads((finished_run / "results.json").read_text())["test"]
    assert found["foreign"] == json.loads((finished_run / "results.json").read_text())["foreign"]
    assert main(["evaluate", str(finished_run), "--data", str(tables / "line.csv"), "--samples", "3", "--out", str(tmp_path / "new")]) == 0
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["rows"] == 60
    assert main(["evaluate", str(finished_run), "--data", str(tables / "flowers.csv"), "--out", str(tmp_path / "bad")]) == 2
    assert "lacks the target 'y'" in capsys.readouterr().err


def test_a_new_class_is_told(finished_classes: Path, tables: Path, tmp_path: Path, capsys: Capture) -> None:
    pd.read_csv(tables / "flowers.csv").replace("rose", "oak").to_csv(tmp_path / "oaks.csv", index=False)
    assert main(["evaluate", str(finished_classes), "--data", str(tmp_path / "oaks.csv"), "--out", str(tmp_path)]) == 2
    assert "class 'oak' was not in training; known: lily, rose, tulip" in capsys.readouterr().err


def test_predictions_of_regression_come_with_intervals(finished_run: Path, tables: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "new.csv"
    # Columns are found by name: their order and further ones do not matter.
    pd.read_csv(tables / "line.csv").drop(columns="y")[["b", "a"]].assign(note="x").to_csv(tmp_path / "rows.csv", index=False)
    assert main(["predict", str(finished_run), "--data", str(tmp_path / "rows.csv"), "--out", str(target)]) == 0
    frame = pd.read_csv(target)
    assert list(frame.columns) == ["row", "mean", "std", "aleatoric_std", "epistemic_std", "lower", "upper"]
    assert len(frame) == 60
    assert ((frame.lower < frame["mean"]) & (frame["mean"] < frame.upper)).all()
    np.testing.assert_allclose(frame["std"] ** 2, frame.aleatoric_std**2 + frame.epistemic_std**2, rtol=1e-9)
    fitted, _ = snapshot.open_fitted(snapshot.find(finished_run)[1].files)
    np.testing.assert_allclose(frame["mean"], fitted.predict(pd.read_csv(tables / "line.csv")[["a", "b"]].to_numpy()).mean, rtol=1e-9)


def test_predictions_of_classes_are_probabilities(finished_classes: Path, tables: Path, tmp_path: Path) -> None:
    assert main(["predict", str(finished_classes), "--data", str(tables / "flowers.csv"), "--out", str(tmp_path / "p.csv")]) == 0
    frame = pd.read_csv(tmp_path / "p.csv")
    probabilities = frame[["probability_lily", "probability_rose", "probability_tulip"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-9)
    assert [f"probability_{name}" for name in frame["class"]] == [frame.columns[2 + k] for k in probabilities.argmax(1)]
    np.testing.assert_allclose(frame.entropy, frame.aleatoric + frame.epistemic, atol=1e-9)


def test_plot_draws_the_pictures_again(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    shutil.rmtree(copy / "figures")
    assert main(["plot", str(copy)]) == 0
    assert {Path(line).name for line in capsys.readouterr().out.split()} == {*PICTURES, "predictive_band.png"}
    assert (copy / "figures" / "reliability.png").stat().st_size > 10_000


def test_check_reports_and_writes_nothing(
    small_config: Path, tables: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", str(small_config), "--dataset", str(tables / "line.csv"), "--table.target", "y"]) == 0
    text = capsys.readouterr().out
    for part in ("54 training rows, 6 test rows", "2 - 6 - 1, 25 parameters", "18 steps", "ms a step"):
        assert part in text
    assert not files(tmp_path)


def test_nothing_in_a_checkpoint_is_executed(finished_run: Path) -> None:
    files_of = dict(snapshot.find(finished_run)[1].files)
    import io
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, ("false",))

    buffer = io.BytesIO()
    torch.save({"vi": Harm()}, buffer, pickle_module=pickle)
    files_of[snapshot.STATE] = buffer.getvalue()
    with pytest.raises(ValueError, match="cannot be read"):
        snapshot.open_fitted(files_of)
