"""The continual benchmark: its tasks are a partition, and its table has what was asked for."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bayes_continual


def test_tasks_are_a_partition_of_the_digits() -> None:
    data = bayes_continual.split_digits(3)
    assert sum(len(x) for part in data for x, _ in part) == 1797
    assert all(set(y.tolist()) == {0, 1} for part in data for _, y in part)


def test_heads_read_two_outputs_of_their_task() -> None:
    model, x = bayes_continual.Heads(8), torch.randn(3, 64)
    whole = model.last(model.first(x).relu())
    model.task = 2
    assert torch.equal(model(x), whole[:, 4:6])


def test_one_epoch_prints_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    bayes_continual.main(["--methods", "noisy_kfac", "--modes", "previous posterior", "--seeds", "1", "--epochs", "1"])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| noisy_kfac | previous posterior | ")
    assert 40 < float(row.split("|")[3].split("±")[0]) <= 100
