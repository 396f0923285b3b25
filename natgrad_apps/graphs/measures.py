"""How good predictions are: accuracy, macro F1, log-likelihood, Brier score, calibration."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Measures:
    """Of the predictions for some nodes.

    Attributes:
        accuracy: Share of nodes whose most probable class is right.
        macro_f1: F1 score of each class that occurs among labels or predictions, averaged.
        nll: Mean ``-log p(y)``, in nats.
        brier: Mean ``sum_c (p_c - [y = c])^2``.
        ece: Expected calibration error with 15 equal bins of confidence (Guo et al. 2017, equation 3), in [0, 1].
        nodes: How many nodes.
    """

    accuracy: float
    macro_f1: float
    nll: float
    brier: float
    ece: float
    nodes: int

    @property
    def score(self) -> float:
        """What epochs are chosen by: the accuracy."""
        return self.accuracy

    def to_dict(self) -> dict[str, float | int]:
        """As plain values."""
        return asdict(self)

    def tracked(self) -> dict[str, float]:
        """What ``metrics.csv`` keeps of each epoch."""
        return {"accuracy": self.accuracy, "nll": self.nll, "ece": self.ece}


def measure(logits: Tensor, y: Tensor) -> Measures:
    """Compare predictions with labels.

    Args:
        logits: ``[n, C]``, ``n >= 1``.
        y: ``[n]``.
    """
    log_p = logits.detach().double().log_softmax(-1)
    p = log_p.exp()
    confidence, best = p.max(-1)
    right = (best == y).double()
    one_hot = torch.nn.functional.one_hot(y, p.shape[1]).double()
    predicted = torch.nn.functional.one_hot(best, p.shape[1]).double()
    hits, sizes = (one_hot * predicted).sum(0), one_hot.sum(0) + predicted.sum(0)
    f1 = (2 * hits / sizes.clamp_min(1))[sizes > 0].mean()
    bins = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64, device=p.device).index_add_(0, bins, right - confidence)
    nll, brier = -log_p.gather(1, y.unsqueeze(1)).mean(), (p - one_hot).square().sum(1).mean()
    accuracy, macro_f1, ece = (float(value) for value in (right.mean(), f1, gap.abs().sum() / len(y)))
    return Measures(accuracy, macro_f1, float(nll), float(brier), ece, len(y))
