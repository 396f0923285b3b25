"""The cost benchmark of posteriors: its table, its baselines, its contenders on small batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bayes_cost
from benchmarks._bayes_contenders import BASELINES, Adam, Bayes, Row, large_network, rows, workload
from benchmarks._models import Setting


def test_every_row_has_a_baseline_and_every_bar_a_row() -> None:
    assert {row.baseline for row in rows()} == set(BASELINES)
    assert {row.name: row.bar for row in rows() if row.bar} == {
        "noisy K-FAC 1/10": 1.3,
        "noisy EKFAC 1/10": 1.3,
        "Vadam": 1.2,
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


def test_the_network_of_ten_million_weights() -> None:
    with torch.device("meta"):
        model = large_network()
    assert sum(p.numel() for p in model.parameters()) == 10_652_042


def test_the_table_says_what_was_met_and_the_page_takes_it(tmp_path: Path) -> None:
    made = workload("cnn", Setting(), 4)
    chosen = [row for row in rows() if row.name == "Vadam"]
    records = bayes_cost.time_workload(made, chosen, 1)
    assert [record["step"] for record in records] == ["Adam", "Vadam"]
    assert records[1]["ratio"] > 0
    records[1] |= {"ratio": 1.25, "low": 1.2, "high": 1.3, "memory": 3 * 2**20}
    large = {
        "weights": 10**7,
        "batch": 2,
        "steps": 3,
        "seconds_per_step": 1.5,
        "loss": (2.3, 1.1),
        "peak_rss_gib": 5.0,
        "peak_cuda_gib": None,
    }
    text = bayes_cost.table(records, large)
    assert "| cnn | Vadam | Adam | 1.25 | 1.20-1.30 | 1.2 missed |" in text
    assert "| 3 | " in text
    assert "5.0 GiB peak of the whole process (bar 24), 1.5 s a step; loss 2.3000 -> 1.1000 in 3 steps." in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bayes_cost.BEGIN}\nold\n{bayes_cost.END}\nafter\n")
    bayes_cost.write_block(text, page)
    assert page.read_text() == f"before\n{bayes_cost.BEGIN}\n{text}\n{bayes_cost.END}\nafter\n"


def test_the_lower_bound_draws_as_many_numbers_as_there_are_weights() -> None:
    made = workload("cnn", Setting(), 4)
    assert Adam(made, draws=True)._noise.numel() == 80_202
    assert Adam(made)._noise.numel() == 0
