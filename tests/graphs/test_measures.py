"""Measures of predictions, against numbers worked out by hand and another library."""

from __future__ import annotations

import math

import pytest
import torch

from natgrad_apps.graphs.measures import measure


def test_by_hand() -> None:
    """Two classes with p = 0.8, 0.6, 0.9 for class 0 and labels 0, 1, 0: the second node is wrong."""
    p = torch.tensor([0.8, 0.6, 0.9], dtype=torch.float64)
    found = measure(torch.stack([p, 1 - p], 1).log(), torch.tensor([0, 1, 0]))
    assert found.nodes == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.nll == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.9)) / 3)
    assert found.brier == pytest.approx((2 * 0.2**2 + 2 * 0.6**2 + 2 * 0.1**2) / 3)
    # class 0: precision 2/3, recall 1, F1 0.8; class 1 is never predicted, F1 0
    assert found.macro_f1 == pytest.approx(0.4)
    # each node has a bin of its own
    assert found.ece == pytest.approx((0.2 + 0.6 + 0.1) / 3)


def test_against_a_loop_over_bins_and_another_library() -> None:
    from sklearn.metrics import f1_score

    logits, y = torch.randn(400, 5, dtype=torch.float64), torch.randint(5, (400,))
    found = measure(logits, y)
    confidence, best = logits.softmax(-1).max(-1)
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += float(inside.double().mean() * ((best == y)[inside].double().mean() - confidence[inside].mean()).abs())
    assert found.ece == pytest.approx(expected, abs=1e-12)
    assert found.macro_f1 == pytest.approx(f1_score(y.numpy(), best.numpy(), average="macro"), abs=1e-12)


def test_certainty_is_in_the_last_bin() -> None:
    found = measure(torch.tensor([[100.0, 0.0], [100.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1]))
    assert found.ece == pytest.approx(0.5)
