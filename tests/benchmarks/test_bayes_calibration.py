"""The calibration benchmark: its splits, its table, and that a run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bayes_calibration
from benchmarks._digits import load_digits
from benchmarks.bayes_calibration import METHODS, Setup, network


def _rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1)}


def test_test_rows_are_no_training_rows_and_validation_stays_inside_them() -> None:
    whole, part = load_digits(3, validation=False), load_digits(3, validation=True)
    assert [len(v) for v in (whole.train_x, whole.test_x, part.train_x, part.test_x)] == [1000, 797, 800, 200]
    assert not _rows(whole.train_x) & _rows(whole.test_x)  # scikit-learn's digits hold no image twice
    assert _rows(part.train_x) | _rows(part.test_x) == _rows(whole.train_x)
    torch.testing.assert_close(whole.foreign["turned"].rot90(-1, (2, 3)), whole.test_x, rtol=0, atol=0)
    assert not torch.equal(load_digits(4, validation=False).test_y, whole.test_y)


def test_every_method_begins_with_the_same_weights() -> None:
    images = load_digits(0, validation=True)
    first, second = network(images, 7), network(images, 7)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first(images.test_x[:3]).shape == (3, 10)


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bayes_calibration, "SETS", {"digits": Setup(load_digits, 4)})
    monkeypatch.setattr(bayes_calibration, "SAMPLES", 3)
    out = tmp_path / "out.json"
    words = ["--sets", "digits", "--seeds", "1", "--validation", "--out", str(out)]
    bayes_calibration.main([*words, "--methods", "adam"])
    first = json.loads(out.read_text())["results"]
    bayes_calibration.main([*words, "--figures", str(tmp_path)])
    results = json.loads(out.read_text())["results"]
    assert set(results) == {f"digits 0 {method}" for method in METHODS}
    assert results["digits 0 adam"]["nll"] == pytest.approx(first["digits 0 adam"]["nll"], rel=1e-6)  # trained again, for the picture
    # four epochs of 8 batches take the deterministic nets away from the 10 % of a guess, the posterior still pays for its first units
    assert all(results[f"digits 0 {method}"]["accuracy"] > 25 for method in ("adam", "kfac"))
    assert all(0 < results[f"digits 0 {method}"]["nll"] < 2.6 for method in METHODS)  # log 10 = 2.30 is a guess
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    text = capsys.readouterr().out
    cells = [f"{results[f'digits 0 {m}']['accuracy']:.2f}" for m in METHODS]
    assert f"| accuracy, % | {' | '.join(cells)} |" in text
