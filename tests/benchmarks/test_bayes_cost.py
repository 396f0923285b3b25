"""The cost benchmark of posteriors: its table, its baselines, its contenders on small batches."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bayes_cost
from benchmarks._bayes_contenders import BASELINES, Adam, Bayes, Row, rows, workload
from benchmarks._models import Setting


def test_every_row_has_a_baseline_and_every_bar_a_row() -> None:
    assert {row.baseline for row in rows()} == set(BASELINES)
    assert {row.name: row.bar for row in rows() if row.bar} == {
        "noisy K-FAC 1/10": 1.3,
        "noisy K-FAC 1/10, pairs across steps": 1.3,
        "noisy EKFAC 1/10": 1.3,
        "Vadam": 1.2,
        "Vadam, pairs across steps": 1.2,
        "SLANG, L = 8, period 10, subsample 4": 3.0,
    }


@pytest.mark.filterwarnings("ignore:.*have no layer adapter")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_contenders_train(row: Row) -> None:
    made = workload("cnn", Setting(), 8)
    contender = row.make(made)
    before = torch.cat([p.detach().flatten().clone() for p in contender.model.parameters()])
    assert contender.step().isfinite()
    after = torch.cat([p.detach().flatten() for p in contender.model.parameters()])
    assert not torch.equal(before, after)
    assert isinstance(contender, Bayes) == (not row.name.startswith("Adam"))


def test_the_table_says_what_was_met() -> None:
    made = workload("cnn", Setting(), 4)
    chosen = [row for row in rows() if row.name == "Vadam"]
    records = bayes_cost.time_workload(made, chosen, 1)
    assert [record["step"] for record in records] == ["Adam", "Vadam"]
    assert records[1]["ratio"] > 0
    records[1] |= {"ratio": 1.25, "low": 1.2, "high": 1.3, "memory": 3 * 2**20}
    text = bayes_cost.table(records)
    assert "| cnn | Vadam | Adam | 1.25 | 1.20-1.30 | 1.2 missed |" in text
    assert "| 3 | " in text


def test_the_lower_bound_draws_as_many_numbers_as_there_are_weights() -> None:
    made = workload("cnn", Setting(), 4)
    assert Adam(made, draws=True)._noise.numel() == 80_202
    assert Adam(made)._noise.numel() == 0
