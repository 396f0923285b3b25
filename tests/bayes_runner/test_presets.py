"""Presets load, and the benchmark's tables say what its results are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import bayes_uci
from natgrad_apps._resources import available_configs
from natgrad_apps.bayes import NoisyKFAC, Vadam
from natgrad_apps.bayes.config import FitConfig, RecipeConfig, TrainConfig, UciConfig
from natgrad_apps.bayes.data.uci import read_uci
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.recipes import build_method, methods
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import read_file
from tests.bayes_runner._uci import write_uci


@pytest.mark.parametrize("name", sorted(available_configs("bayes")))
def test_every_preset_is_a_configuration(name: str) -> None:
    kind = UciConfig if name == "uci" else TrainConfig
    config = schema.read(kind, read_file(available_configs("bayes")[name]))
    assert config.method in methods()


def test_learning_rate_schedules() -> None:
    # cos(pi/2) = 0, cos(pi/3) = 1/2
    assert [FitConfig(lr_schedule="cosine").lr_factor(t) for t in (0, 1 / 3, 0.5, 1)] == pytest.approx([1, 0.75, 0.5, 0])
    assert [FitConfig(lr_schedule="step").lr_factor(t) for t in (0, 0.49, 0.5, 1)] == [1, 1, 0.1, 0.1]
    assert FitConfig(lr_schedule="constant").lr_factor(0.9) == 1


def test_jobs_cover_every_set_split_and_method_split_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_uci(tmp_path / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path))
    assert list(bayes_uci.jobs(["yacht"], None, ["a", "b"])) == [("yacht", 0, "a"), ("yacht", 0, "b"), ("yacht", 1, "a"), ("yacht", 1, "b")]
    assert list(bayes_uci.jobs(["yacht"], [1, 5], ["a"])) == [("yacht", 1, "a")]


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
        bayes_uci.main([*words, "--learn_prior"])
    bayes_uci.write_block("new", page)
    assert page.read_text() == f"above\n{bayes_uci.BEGIN}\nnew\n{bayes_uci.END}\nbelow\n"
    assert "**yacht**" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_public_method_trains_by_name(name: str, tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    fit = Fit(table, table.splits[0], RecipeConfig(method=name, training=FitConfig(epochs=2, batch_size=8)), seed=0)
    before = [p.clone() for p in fit.vi.model.parameters()]
    while fit.steps_done < fit.steps_total:
        fit.step()
    assert fit.steps_done == 4
    assert any(not torch.equal(a, b) for a, b in zip(before, fit.vi.model.parameters(), strict=True))
    assert all(math.isfinite(value) for value in fit.evaluate(4).values())


def test_batches_cover_an_epoch_and_differ_by_one_row_at_most(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    fit = Fit(table, table.splits[0], RecipeConfig(training=FitConfig(epochs=1, batch_size=6)), seed=0)
    fit.step()
    # 16 rows: round(16 / 6) = 3 batches
    assert sorted(len(part) for part in fit._parts) == [5, 5, 6]
    assert sorted(torch.cat(fit._parts).tolist()) == list(range(16))


def test_the_longest_training_may_be_bounded(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    table = read_uci(tmp_path / "yacht", "yacht")
    bounded = RecipeConfig(training=FitConfig(epochs=100, batch_size=8, max_steps=7))
    assert Fit(table, table.splits[0], bounded, seed=0).steps_total == 7


def test_learning_rate_and_damping_have_defaults_where_the_method_has_them() -> None:
    kfac, vadam = build_method("noisy_kfac", {}), build_method("vadam", {})
    assert isinstance(kfac, NoisyKFAC)
    assert isinstance(vadam, Vadam)
    assert (kfac.lr, kfac.damping, vadam.lr) == (0.1, 1e-3, 0.01)
    plain = build_method("noisy_kfac", {"damping": 0.0, "lr": 0.5})
    assert isinstance(plain, NoisyKFAC)
    assert (plain.lr, plain.damping) == (0.5, 0.0)
    assert bayes_uci.recipe("vadam", {"damping": 0.0}).inference.damping is None
    assert bayes_uci.recipe("noisy_kfac", {"damping": 0.0}).inference.damping == 0
