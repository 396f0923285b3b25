r"""Honest probabilities: one temperature for all nodes, and sets of classes with a promised coverage.

Both need validation nodes. The temperature of the probabilities that are reported comes from all of them; sets come from half of them, and
their own temperature from the other half, so that the scores of the nodes that set the threshold are exchangeable with those of new nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, check_fraction, check_positive


@dataclass(frozen=True)
class Calibrated:
    """Probabilities of all nodes after `calibrate`.

    Attributes:
        log_p: Scaled log-probabilities ``[N, C]``, float64.
        temperature: What the logits were divided by; above 1 the probabilities were too sure.
        sets: Classes of each node's conformal set, ``[N, C]`` booleans.
        selection_nll: Mean ``-log p(y)`` in nats of the first half of the validation nodes, scaled by their own temperature. Choices by
            it leave the promise of the sets intact, because the other half has set their threshold.
    """

    log_p: Tensor
    temperature: float
    sets: Tensor
    selection_nll: float


def calibrate(log_p: Tensor, y: Tensor, val: Tensor, miscoverage: float) -> Calibrated:
    """Scale probabilities and make conformal sets.

    Args:
        log_p: Log-probabilities or logits ``[N, C]``.
        y: Classes ``[N]``; only those of `val` are read.
        val: Indices of validation nodes, at least two. Every other one sets the temperature of the sets.
        miscoverage: Of the sets, in (0, 1).

    Raises:
        ConfigError: There are fewer than two validation nodes, or the miscoverage is not in (0, 1).
    """
    if len(val) < 2:
        raise ConfigError(f"calibration needs at least two validation nodes, got {len(val)}; take a split that has some")
    z = log_p.double()
    temperature = fit_temperature(z[val], y[val])
    first, second = val[::2], val[1::2]
    scaled = (z / fit_temperature(z[first], y[first])).log_softmax(-1)
    p = scaled.exp()
    nll = -float(scaled[first].gather(1, y[first].unsqueeze(1)).mean())
    return Calibrated((z / temperature).log_softmax(-1), temperature, conformal_sets(p[second], y[second], p, miscoverage), nll)


def fit_temperature(logits: Tensor, y: Tensor, iterations: int = 60) -> float:
    r"""The ``T`` that minimises ``-mean log softmax(logits / T)[y]`` (Guo et al. 2017, section 4.2).

    With ``b = 1/T`` the loss is convex in ``b``; its derivative ``mean(E_p[z] - z_y)`` grows with ``b``, and ``T`` is found by bisection
    over ``[1e-3, 1e3]``.

    Args:
        logits: ``[n, C]``; log-probabilities serve as well.
        y: ``[n]``.
        iterations: Halvings of ``log b``.

    Raises:
        ConfigError: There is no node.
    """
    if len(y) == 0:
        raise ConfigError("a temperature needs validation nodes, got none")
    z = logits.double()
    chosen = z.gather(1, y.unsqueeze(1)).squeeze(1)
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(iterations):
        middle = (low + high) / 2
        p = (z * math.exp(middle)).softmax(-1)
        slope = float(((p * z).sum(-1) - chosen).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def conformal_sets(calibration: Tensor, y: Tensor, probabilities: Tensor, miscoverage: float = 0.1) -> Tensor:
    r"""Sets of classes that hold the right one with probability at least ``1 - miscoverage``, for exchangeable nodes.

    Split conformal prediction with the score ``1 - p_y``: a class is in the set if its score is at most the
    ``ceil((n + 1)(1 - miscoverage))``-th smallest score of the calibration nodes; every class, if there are too few of them.
    Reference: Vovk, Gammerman & Shafer, Algorithmic learning in a random world, 2005; Sadinle, Lei & Wasserman, JASA 2019.

    Args:
        calibration: Probabilities ``[n, C]`` of nodes that neither trained the network nor its temperature.
        y: Their classes ``[n]``.
        probabilities: ``[m, C]`` of the nodes of interest.
        miscoverage: In (0, 1).

    Returns:
        ``[m, C]`` booleans.

    Raises:
        ConfigError: The miscoverage is not in (0, 1).
    """
    check_fraction("miscoverage", miscoverage)
    check_positive("miscoverage", miscoverage)
    scores = 1 - calibration.gather(1, y.unsqueeze(1)).squeeze(1)
    rank = math.ceil((len(scores) + 1) * (1 - miscoverage))
    if rank > len(scores):
        return torch.ones_like(probabilities, dtype=torch.bool)
    return 1 - probabilities <= scores.sort().values[rank - 1]
