"""Metrics against computations by hand, quadrature or simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from natgrad_apps.bayes import metrics
from natgrad_apps.errors import ShapeError

T = torch.tensor
pytestmark = pytest.mark.usefixtures("float64")


def test_rmse_by_hand() -> None:
    assert metrics.rmse(T([1.0, 2.0]), T([4.0, 6.0])) == pytest.approx(math.sqrt((9 + 16) / 2))


def test_the_two_log_likelihoods_by_hand() -> None:
    # Two samples, two points: densities 0.5, 0.1 under the first, 0.2, 0.4 under the second.
    log_density = T([[0.5, 0.1], [0.2, 0.4]]).log()
    assert metrics.pointwise_log_likelihood(log_density) == pytest.approx((math.log(0.35) + math.log(0.25)) / 2)
    assert metrics.joint_log_likelihood(log_density) == pytest.approx(math.log((0.05 + 0.08) / 2) / 2)


def test_log_likelihoods_do_not_underflow() -> None:
    log_density = torch.full((3, 10_000), -2000.0)
    assert metrics.pointwise_log_likelihood(log_density) == pytest.approx(-2000)
    assert metrics.joint_log_likelihood(log_density) == pytest.approx(-2000)


def test_gaussian_density_in_target_units_is_that_in_standard_units_less_log_std() -> None:
    g = np.random.default_rng(0)
    f, y, sigma = g.normal(size=(4, 5)), g.normal(size=5), 0.3
    found = metrics.gaussian_log_density(T(f), T(sigma), T(y)).numpy()
    np.testing.assert_allclose(found, stats.norm.logpdf(y, f, sigma), rtol=1e-12)
    mean, std = 7.0, 2.5
    in_units = metrics.gaussian_log_density(T(f * std + mean), T(sigma * std), T(y * std + mean)).numpy()
    np.testing.assert_allclose(in_units, found - math.log(std), rtol=1e-10)


def test_categorical_density_by_hand() -> None:
    p = T([[[0.1, 0.9], [0.7, 0.3]]])
    np.testing.assert_allclose(metrics.categorical_log_density(p, T([1, 0])).exp().numpy(), [[0.9, 0.7]], rtol=1e-12)
    assert math.isfinite(float(metrics.categorical_log_density(T([[[0.0, 1.0]]]), T([0]))))


def test_crps_is_the_integral_of_the_squared_difference_of_distribution_functions() -> None:
    mu, sigma, y = np.array([-1.0, 0.2, 2.5]), 0.6, 0.4

    def integrand(t: float) -> float:
        return float((stats.norm.cdf(t, mu, sigma).mean() - (t >= y)) ** 2)

    # Both halves are smooth; quadrature is good to 1e-8.
    expected = integrate.quad(integrand, -20, y)[0] + integrate.quad(integrand, y, 20)[0]
    found = metrics.crps(T(mu[:, None]), T(sigma), T([y]))
    assert found == pytest.approx(expected, abs=1e-7)


def test_crps_of_one_normal_is_its_closed_form() -> None:
    # At y = mu: sigma (2 phi(0) - 1/sqrt(pi))
    expected = 1.7 * (2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi))
    assert metrics.crps(T([[3.0]]), T(1.7), T([3.0])) == pytest.approx(expected, rel=1e-12)


def test_brier_accuracy_by_hand() -> None:
    p, y = T([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), T([0, 1])
    assert metrics.brier(p, y) == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.49 + 0.36) / 2)
    assert metrics.accuracy(p, y) == 0.5


def test_calibration_floor_is_the_mean_deviation_of_a_binomial() -> None:
    """Ten points of confidence 0.7 share a bin: the error is ``|K / 10 - 0.7|`` with ``K`` binomial."""
    p = torch.tensor([[0.7, 0.3]] * 10)
    chances = [math.comb(10, k) * 0.7**k * 0.3 ** (10 - k) for k in range(11)]
    expected = sum(c * abs(k / 10 - 0.7) for k, c in enumerate(chances))
    # |K / 10 - 0.7| deviates by less than sqrt(0.7 * 0.3 / 10) = 0.145; 20,000 draws: 0.001, of which five
    assert metrics.calibration_floor(p, draws=20_000) == pytest.approx(expected, abs=0.005)
    assert metrics.calibration_floor(torch.eye(2)[[0, 1, 1]]) == 0.0  # sure predictions that are calibrated are never wrong


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/5. Confidences 0.65 and 0.75 share (0.6, 0.8]: mean 0.7, accuracy 1/2. 0.8 is the closed end of that bin too.
    p = T([[0.65, 0.35], [0.25, 0.75], [0.95, 0.05], [0.8, 0.2]])
    y = T([0, 0, 0, 0])
    count, confidence, right = metrics.reliability(p, y, bins=5)
    assert count.tolist() == [0, 0, 0, 3, 1]
    assert confidence[3:].tolist() == pytest.approx([2.2 / 3, 0.95])
    assert right[3:].tolist() == pytest.approx([2 / 3, 1])
    assert metrics.calibration_error(p, y, bins=5) == pytest.approx((3 * abs(2.2 / 3 - 2 / 3) + 0.05) / 4)


def test_a_calibrated_forecaster_has_a_small_error_and_an_overconfident_one_a_large() -> None:
    g = torch.Generator().manual_seed(0)
    p = 0.5 + 0.5 * torch.rand(20_000, generator=g)
    y = (torch.rand(20_000, generator=g) > p).long()
    stacked = torch.stack([p, 1 - p], 1)
    # Sampling error of a bin's accuracy is at most 0.5/sqrt(20000/8) = 0.01.
    assert metrics.calibration_error(stacked, y) < 0.015
    sure = torch.stack([torch.full_like(p, 0.999), torch.full_like(p, 0.001)], 1)
    # The accuracy is 3/4 +- 0.003.
    assert metrics.calibration_error(sure, y) == pytest.approx(0.249, abs=0.012)


def test_auroc_by_counting_pairs() -> None:
    inside, outside = T([0.1, 0.4, 0.4, 0.9]), T([0.4, 0.8, 0.95])
    pairs = [(a > b) + 0.5 * (a == b) for a in outside.tolist() for b in inside.tolist()]
    assert metrics.auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))


def test_fpr95_by_hand() -> None:
    outside = torch.arange(1, 21)  # 95 % of 20 are 19: the threshold is 2
    assert metrics.fpr95(T([0.0, 1.0, 2.0, 50.0]), outside) == 0.5
    assert metrics.fpr95(T([0.0, 1.0]), outside) == 0


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"got \(2,\) and \(3,\)"):
        metrics.rmse(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ShapeError):
        metrics.brier(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ShapeError, match="both sets need points"):
        metrics.auroc(torch.zeros(0), torch.zeros(3))
