"""How good predictions are: accuracy, likelihood, calibration, detection of foreign inputs. Everything in float64.

Predictions are mixtures: ``S`` weight samples of equal weight. Two log-likelihoods have been published under one name:

* pointwise, ``1/N sum_n log 1/S sum_s p(y_n | x_n, w_s)``: each test point by itself (Gal & Ghahramani 2016; Zhang et al. 2018);
* joint, ``1/N log 1/S sum_s prod_n p(y_n | x_n, w_s)``: the test set as a whole (Khan et al. 2018; Mishkin et al. 2018).

Both are natural logarithms and higher is better; with few samples the joint one is generally the lower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from natgrad_apps.errors import ShapeError

BINS = 15
"""Bins of `calibration_error`, of equal width on [0, 1] (Guo et al. 2017)."""
SQRT_2PI = math.sqrt(2 * math.pi)


def rmse(mean: Tensor, y: Tensor) -> float:
    """Root of the mean squared error, in the unit of the target.

    Args:
        mean: ``[N]``.
        y: ``[N]``.
    """
    _same(mean, y)
    return float((mean.double() - y.double()).square().mean().sqrt())


def gaussian_log_density(samples: Tensor, noise_std: Tensor, y: Tensor) -> Tensor:
    """``log N(y_n; f_s(x_n), sigma^2)``, ``[S, N]``, in nats per unit of the target.

    A density in standardized units is larger by the factor ``std(y_train)``, so with samples and noise in target units nothing more is
    to be subtracted; with standardized ones subtract ``log std(y_train)``.

    Args:
        samples: ``[S, N]``.
        noise_std: ``sigma``, 0-d, positive.
        y: ``[N]``.
    """
    _same(samples[0], y)
    sigma = noise_std.double()
    z = (y.double() - samples.double()) / sigma
    return -0.5 * z.square() - (sigma * SQRT_2PI).log()


def categorical_log_density(samples: Tensor, y: Tensor) -> Tensor:
    """``log p_s(y_n | x_n)``, ``[S, N]``.

    Args:
        samples: Probabilities ``[S, N, C]``.
        y: Classes ``[N]``.
    """
    _same(samples[0, :, 0], y)
    return (
        samples.double().clamp_min(torch.finfo(torch.float64).tiny).log().gather(-1, y.expand(len(samples), -1).unsqueeze(-1)).squeeze(-1)
    )


def pointwise_log_likelihood(log_density: Tensor) -> float:
    """Mean over points of the log-mean-exp over samples; minus it is the NLL of the mixture.

    Args:
        log_density: ``[S, N]``.
    """
    return float((log_density.double().logsumexp(0) - math.log(len(log_density))).mean())


def joint_log_likelihood(log_density: Tensor) -> float:
    """Log-mean-exp over samples of the sum over points, divided by the number of points.

    Args:
        log_density: ``[S, N]``.
    """
    joint = log_density.double().sum(1).logsumexp(0) - math.log(len(log_density))
    return float(joint / log_density.shape[1])


def crps(samples: Tensor, noise_std: Tensor, y: Tensor) -> float:
    r"""Continuous ranked probability score of the mixture of ``S`` normals, in the unit of the target; lower is better.

    ``1/S sum_s A(y - mu_s, sigma^2) - 1/(2 S^2) sum_{s,t} A(mu_s - mu_t, 2 sigma^2)``,
    ``A(m, v) = E |N(m, v)| = 2 sqrt(v) phi(m/sqrt(v)) + m (2 Phi(m/sqrt(v)) - 1)`` (Grimit et al. 2006, equation 3).

    Args:
        samples: Means ``[S, N]``.
        noise_std: ``sigma``, 0-d, positive.
        y: ``[N]``.
    """
    _same(samples[0], y)
    mu, sigma = samples.double(), noise_std.double()
    first = _absolute_moment(y.double() - mu, sigma).mean(0)
    # One sample at a time against all others: memory S N, not S^2 N.
    second = torch.stack([_absolute_moment(mu - m, sigma * math.sqrt(2)).mean(0) for m in mu]).mean(0)
    return float((first - 0.5 * second).mean())


def _absolute_moment(m: Tensor, std: Tensor) -> Tensor:
    z = m / std
    return std * 2 * (-0.5 * z.square()).exp() / SQRT_2PI + m * torch.erf(z / math.sqrt(2))


def accuracy(probabilities: Tensor, y: Tensor) -> float:
    """Share of points whose most probable class is the true one.

    Args:
        probabilities: ``[N, C]``.
        y: Classes ``[N]``.
    """
    _same(probabilities[:, 0], y)
    return float((probabilities.argmax(1) == y).double().mean())


def brier(probabilities: Tensor, y: Tensor) -> float:
    """Mean over points of ``sum_c (p_c - [y = c])^2``, in [0, 2].

    Args:
        probabilities: ``[N, C]``.
        y: Classes ``[N]``.
    """
    _same(probabilities[:, 0], y)
    p = probabilities.double()
    return float((p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(1).mean())


def reliability(probabilities: Tensor, y: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence against accuracy.

    Confidence is the largest probability. Bin ``b = 1 .. B`` holds confidences in ``((b-1)/B, b/B]``.

    Args:
        probabilities: ``[N, C]``.
        y: Classes ``[N]``.
        bins: ``B``.

    Returns:
        Number of points, mean confidence and accuracy of each bin, ``[B]``; the latter two are 0 for an empty bin.
    """
    _same(probabilities[:, 0], y)
    confidence, found = probabilities.double().max(1)
    index = _bin(confidence, bins)
    count = torch.bincount(index, minlength=bins).double()
    total = torch.bincount(index, weights=confidence, minlength=bins)
    right = torch.bincount(index, weights=(found == y).double(), minlength=bins)
    return count, total / count.clamp_min(1), right / count.clamp_min(1)


def calibration_error(probabilities: Tensor, y: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: ``sum_b n_b/N |confidence_b - accuracy_b|`` over the bins of `reliability`.

    Args:
        probabilities: ``[N, C]``.
        y: Classes ``[N]``.
        bins: Number of bins of equal width.
    """
    count, confidence, right = reliability(probabilities, y, bins)
    return float((count * (confidence - right).abs()).sum() / count.sum())


def calibration_floor(probabilities: Tensor, bins: int = BINS, draws: int = 1000, seed: int = 0) -> float:
    """Expected `calibration_error` of these predictions if they were perfectly calibrated: what a finite set of points leaves.

    Each point is right with the probability of its confidence; the mean over simulated outcomes. A calibration error at this height shows
    no miscalibration, and of two calibrated predictors the less confident one has the higher floor.

    Args:
        probabilities: ``[N, C]``.
        bins: Number of bins of equal width.
        draws: Simulated outcomes.
        seed: Of the simulation.
    """
    confidence, found = probabilities.double().max(1)
    _same(confidence, found)
    member = torch.nn.functional.one_hot(_bin(confidence, bins), bins).double()
    generator = torch.Generator(device=confidence.device).manual_seed(seed)
    right = torch.rand(draws, len(confidence), dtype=torch.float64, device=confidence.device, generator=generator) < confidence
    return float((right.double() @ member - confidence @ member).abs().sum(1).mean() / len(confidence))


def _bin(confidence: Tensor, bins: int) -> Tensor:
    return ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a foreign point has the higher uncertainty than an own one; ties count half.

    Args:
        inside: Uncertainty of points from the training distribution, ``[N]``.
        outside: Uncertainty of foreign points, ``[M]``.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - takes a second to load

    labels, scores = _labelled(inside, outside)
    return float(roc_auc_score(labels, scores))


def fpr95(inside: Tensor, outside: Tensor) -> float:
    """Share of own points that are called foreign at the highest threshold that finds at least 95 % of the foreign ones.

    Args:
        inside: Uncertainty of points from the training distribution, ``[N]``.
        outside: Uncertainty of foreign points, ``[M]``.
    """
    needed = math.ceil(0.95 * len(outside))
    threshold = outside.double().sort(descending=True).values[needed - 1]
    return float((inside.double() >= threshold).double().mean())


def _labelled(inside: Tensor, outside: Tensor) -> tuple[list[int], list[float]]:
    if not len(inside) or not len(outside):
        raise ShapeError(f"both sets need points, got {len(inside)} own and {len(outside)} foreign ones")
    return [0] * len(inside) + [1] * len(outside), torch.cat([inside, outside]).double().tolist()


def _same(values: Tensor, y: Tensor) -> None:
    if values.dim() != 1 or values.shape != y.shape or len(y) == 0:
        raise ShapeError(f"predictions and targets must both be [N] with N >= 1, got {tuple(values.shape)} and {tuple(y.shape)}")
