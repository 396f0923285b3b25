"""The benchmark of active learning prints both metrics of a set, and its differences are paired."""

from __future__ import annotations

import pytest

from benchmarks import bayes_active


def test_rows_by_hand() -> None:
    def curve(*values: float) -> list[dict[str, float]]:
        return [{"rmse": v, "loglik_pointwise": -v} for v in values]

    found = [
        {"mutual_information": curve(5, *[3] * 10), "random": curve(5, *[4] * 10)},
        {"mutual_information": curve(7, *[1] * 10), "random": curve(7, *[4] * 10)},
    ]
    first, second = bayes_active.rows("s", "m", found)  # type: ignore[arg-type]
    # ends 3 and 1: 2 ± 1; differences -1 and -3: -2 ± 1
    assert first == "| s | m | rmse | 6 ± 1 | 2 ± 1 | 4 ± 0 | -2 ± 1 |"
    assert second == "| s | m | loglik_pointwise | -6 ± 1 | -2 ± 1 | -4 ± 0 | 2 ± 1 |"


def test_the_command_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bayes_active, "ROUNDS", 1)
    bayes_active.main(["--sets", "breast_cancer", "--seeds", "0-1", "--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines[-2:]] == ["accuracy", "loglik_pointwise"]
