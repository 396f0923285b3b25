"""The UCI benchmark resumes, and its tables say what its results are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _pages, bayes_uci
from natgrad_apps.bayes.data import Split
from tests.bayes_runner._uci import write_uci


def test_stacks_cover_every_set_split_and_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_uci(tmp_path / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path))
    assert list(bayes_uci.stacks(["yacht"], None, ["vogn"], 10)) == [("yacht", [0], "vogn"), ("yacht", [1], "vogn")]
    assert list(bayes_uci.stacks(["yacht"], None, ["noisy_kfac"], 10)) == [("yacht", [0, 1], "noisy_kfac")]
    assert list(bayes_uci.stacks(["yacht"], None, ["noisy_kfac"], 1)) == [("yacht", [0], "noisy_kfac"), ("yacht", [1], "noisy_kfac")]
    assert list(bayes_uci.stacks(["yacht"], [1, 5], ["vogn"], 10)) == [("yacht", [1], "vogn")]


def test_one_split_is_the_packages_training_and_several_are_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_uci(tmp_path / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path))
    preset = tmp_path / "uci.yaml"
    preset.write_text("training: {epochs: 3, batch_size: 8}\nprediction: {num_samples: 3}\n")
    monkeypatch.setattr(bayes_uci, "config_path", lambda kind, name: preset)
    together = bayes_uci.run("yacht", [0, 1], "noisy_kfac", {})
    alone = [bayes_uci.run("yacht", [split], "noisy_kfac", {})[0] for split in (0, 1)]
    assert [r["stack"] for r in (*together, *alone)] == [2, 2, 1, 1]
    # six steps in float32; only rounding differs, see test_stacked.py
    assert [r["rmse"] for r in together] == pytest.approx([r["rmse"] for r in alone], rel=1e-4)


def test_validation_never_sees_the_published_test_rows() -> None:
    split = Split(np.arange(40), np.arange(40, 50))
    part = bayes_uci.held_out(split, 3)
    assert len(part.test) == 6  # 15 % of 40
    assert sorted([*part.train, *part.test]) == list(range(40))
    assert list(bayes_uci.held_out(split, 4).test) != list(part.test)


def test_tables_hold_means_and_standard_errors() -> None:
    base = {"loglik_pointwise": -2.0, "loglik_joint": -2.5, "noise_std": 1.0, "steps": 3, "cpu_seconds": 1.0}
    results = {"yacht 0 noisy_kfac": {**base, "rmse": 1.0}, "yacht 1 noisy_kfac": {**base, "rmse": 3.0}}
    text = bayes_uci.tables(results)
    assert "| noisy_kfac | 0-1 | 2.00 ± 1.00 | -2.00 ± 0.00 | -2.50 ± 0.00 | 1.0 |" in text
    assert "same splits" not in text
    more = bayes_uci.tables({**results, "yacht 1 vogn": {**base, "rmse": 5.0}})
    same = more[more.index("the same splits for every method: 1**") :]
    assert "| noisy_kfac | 1 | 3.00 |" in same
    assert "| vogn | 1 | 5.00 |" in same
    assert "| SLANG (Mishkin et al. 2018; joint LL) | 0-19 | 1.08 ± 0.06 |  | -1.88 ± 0.01 | |" in text


def test_splits_are_named() -> None:
    assert bayes_uci._ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_the_benchmark_runs_writes_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_uci(tmp_path / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path))
    preset = tmp_path / "uci.yaml"
    preset.write_text("training: {epochs: 2, batch_size: 8}\nprediction: {num_samples: 3}\n")
    monkeypatch.setattr(bayes_uci, "config_path", lambda kind, name: preset)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    page.write_text(f"above\n{bayes_uci.BEGIN}\nold\n{bayes_uci.END}\nbelow\n")
    words = ["--sets", "yacht", "--splits", "0", "--out", str(out)]
    bayes_uci.main([*words, "--methods", "noisy_adam"])
    first = json.loads(out.read_text())["results"]
    bayes_uci.main([*words, "--methods", "noisy_adam", "deterministic"])
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"yacht 0 noisy_adam", "yacht 0 deterministic"}
    assert results["yacht 0 noisy_adam"] == first["yacht 0 noisy_adam"]  # times included: not trained again
    assert results["yacht 0 deterministic"]["steps"] == 4
    assert results["yacht 0 deterministic"]["rmse"] > 0
    with pytest.raises(SystemExit, match="other settings"):
        bayes_uci.main([*words, "--learn_prior", "false"])
    _pages.write_block("new", page, (bayes_uci.BEGIN, bayes_uci.END))
    assert page.read_text() == f"above\n{bayes_uci.BEGIN}\nnew\n{bayes_uci.END}\nbelow\n"
    assert "**yacht**" in capsys.readouterr().out


def test_damping_is_given_to_methods_that_have_it_only() -> None:
    assert bayes_uci.recipe("vadam", {"damping": 0.0}).inference.damping is None
    assert bayes_uci.recipe("noisy_kfac", {"damping": 0.0}).inference.damping == 0
