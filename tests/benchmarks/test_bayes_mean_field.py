"""The mean-field benchmark: its clock, its measure, and that both kinds of contenders are measured alike."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks._mean_field import NOISE_STD, Backprop, Data, Ours, build
from benchmarks.bayes_mean_field import NAMES, RATES, negative_elbo, seconds_to, table


@pytest.fixture
def data() -> Data:
    x = torch.randn(20, 3)
    y = x.sum(1, keepdim=True).sin()
    return Data(x, y, x[:5], y[:5, 0].double(), 1.0, 0.0)


def test_time_is_read_off_between_two_points() -> None:
    result = {"curve": [(1.0, 100.0), (2.0, 60.0), (3.0, 40.0)]}
    assert seconds_to(result, 50.0) == 2.5
    assert seconds_to(result, 100.0) == 1.0
    assert seconds_to(result, 39.0) == math.inf


@pytest.mark.parametrize("name", list(NAMES))
def test_every_method_lowers_its_negative_elbo(name: str, data: Data) -> None:
    contender = build(name, data, RATES[name], 0)
    first = negative_elbo(contender, data)
    for _ in range(30):
        contender.step(data.x, data.y, 1.0)
    assert negative_elbo(contender, data) < first


def test_equal_distributions_have_equal_elbos(data: Data) -> None:
    """Before the first step all begin at the same weights with the same standard deviation, and samples come from one generator."""
    contenders = [build(name, data, RATES[name], 0) for name in NAMES]
    kls = [c.kl() for c in contenders]
    assert isinstance(contenders[0], Ours)
    assert isinstance(contenders[-1], Backprop)
    for kl in kls[1:]:
        assert kl == pytest.approx(kls[0], rel=1e-4)  # float32, sums of 250 terms
    elbos = [negative_elbo(c, data) for c in contenders]
    # The same normal numbers meet the same weights only where the order of draws is the same: 50 samples of an error of a few nats.
    nll = elbos[0] - kls[0]
    assert all(e - k == pytest.approx(nll, rel=0.05) for e, k in zip(elbos, kls, strict=True))
    assert nll > data.y.numel() * math.log(NOISE_STD * math.sqrt(2 * math.pi))


def test_the_table_counts_runs_that_reach_the_autoguides_elbo() -> None:
    curves = {"vadam": [(1.0, 90.0), (2.0, 10.0)], "vogn": [(1.0, 90.0), (2.0, 80.0)]}
    others = {name: [(5.0, 99.0), (10.0, 50.0)] for name in NAMES if name not in curves}
    results = {f"yacht 0 {n}": {"curve": c, "rmse": 0.5, "loglik": -1.0} for n, c in {**curves, **others}.items()}
    lines = table(results).splitlines()
    assert lines[2] == "| yacht | Vadam | 0 | 10.0 | 0.500 | -1.000 | 2.0 | 1.5 |"
    assert lines[3] == "| yacht | VOGN | 0 | 80.0 | 0.500 | -1.000 | 2.0 |  (reached in 0 of 1) |"
