"""The running average of the weights: its formula, and that it is what a run evaluates, chooses, reports and continues with."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from natgrad_apps.graphs import runs
from natgrad_apps.graphs.averaging import WeightAverage
from natgrad_apps.graphs.config import DataConfig, OptimizerConfig, TrainConfig
from natgrad_apps.graphs.trainer import Trainer


def test_by_hand() -> None:
    """Weights 1, 2, 3, ...: rates 1, 9/10, 9/11, ... until 1 - decay is larger."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, expected = WeightAverage(model, 0.5), 0.0
    for t in range(1, 30):
        with torch.no_grad():
            model.weight.fill_(float(t))
        average.update()
        expected += max(0.5, 9 / (t + 8)) * (t - expected)
    with average.shown():
        assert model.weight.item() == pytest.approx(expected, rel=1e-14)
    assert model.weight.item() == 29.0
    average.drop()
    with average.shown():
        assert model.weight.item() == 29.0


def test_an_exception_leaves_the_own_weights() -> None:
    model = nn.Linear(2, 1)
    average = WeightAverage(model, 0.9)
    average.update()
    with torch.no_grad():
        model.weight.add_(1.0)
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.shown():
        raise KeyError
    assert torch.equal(model.weight, own)


def make(**changes: Any) -> Trainer:
    base: dict[str, Any] = {"split": "random", "data": DataConfig(per_class=3, val=8), "epochs": 12, "seed": 4, "device": "cpu"}
    return runs.open_trainer(TrainConfig(**{**base, **changes}))


@pytest.mark.parametrize("optimizer", ["natural_gradient", "adam"])
def test_the_average_is_evaluated_and_reported_and_changes_no_step(optimizer: Any) -> None:
    config = OptimizerConfig(name=optimizer, lr=0.05)
    plain, history = make(optimizer=config, select="last"), []
    for _ in range(12):
        plain.run_epoch()
        history.append([p.detach().clone() for p in plain.model.parameters()])
    averaged = make(optimizer=config, average=0.8, select="last")  # it seeds torch anew
    for _ in range(12):
        last = averaged.run_epoch()
    for own, other in zip(plain.model.parameters(), averaged.model.parameters(), strict=True):
        assert torch.equal(own, other), "training goes on from the weights themselves"
    mean = history[0]
    for t, weights in enumerate(history[1:], start=2):
        rate = max(0.2, 9 / (t + 8))
        mean = [a + rate * (w - a) for a, w in zip(mean, weights, strict=True)]
    averaged.load_best()
    for expected, found in zip(mean, averaged.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # the same float32 sums in another order
    assert averaged.evaluate()[2] == last.test, "what is reported was measured with the average"
    plain.load_best()
    assert not torch.equal(plain.predict(), averaged.predict())


def test_a_run_in_two_pieces_is_bit_equal() -> None:
    whole = make(average=0.9, select="accuracy")
    for _ in range(12):
        expected = whole.run_epoch()
    first = make(average=0.9, select="accuracy")
    for _ in range(5):
        first.run_epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    second = make(average=0.9, select="accuracy")
    second.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for _ in range(7):
        found = second.run_epoch()
    assert found == expected
    for trainer in (whole, second):
        trainer.load_best()
    assert torch.equal(whole.predict(), second.predict())
