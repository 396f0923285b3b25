"""How well scores tell links from pairs without one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinkMeasures:
    """Of the predictions for some pairs of nodes.

    Attributes:
        auc: Probability that a link scores higher than a pair without one, ties counted half.
        ap: Average precision, ``sum_k (R_k - R_{k-1}) P_k`` over the distinct scores from the highest down.
        accuracy: Share of pairs whose probability is on the right side of 1/2.
        nll: Mean ``-log p``, in nats.
        pairs: How many pairs.
    """

    auc: float
    ap: float
    accuracy: float
    nll: float
    pairs: int

    @property
    def score(self) -> float:
        """What epochs are chosen by: the area under the curve."""
        return self.auc

    def to_dict(self) -> dict[str, float | int]:
        """As plain values."""
        return asdict(self)

    def tracked(self) -> dict[str, float]:
        """What ``metrics.csv`` keeps of each epoch."""
        return {"auc": self.auc, "ap": self.ap, "nll": self.nll}


def measure_links(logits: Tensor, labels: Tensor) -> LinkMeasures:
    """Compare scores with links.

    Args:
        logits: ``[n]``.
        labels: ``[n]``, 1 for links and 0 for other pairs; both occur.
    """
    logits, labels = logits.detach().double(), labels.double()
    # Pairs of equal scores are one step of the curves.
    _, place = torch.unique(-logits, return_inverse=True)
    steps = int(place.max()) + 1
    hits = logits.new_zeros(steps).index_add_(0, place, labels)
    misses = logits.new_zeros(steps).index_add_(0, place, 1 - labels)
    found, wrong = hits.cumsum(0), misses.cumsum(0)
    auc = (misses * (found - hits / 2)).sum() / (hits.sum() * misses.sum())
    ap = (hits * found / (found + wrong)).sum() / hits.sum()
    accuracy = ((logits > 0) == (labels > 0)).double().mean()
    nll = F.binary_cross_entropy_with_logits(logits, labels)
    return LinkMeasures(float(auc), float(ap), float(accuracy), float(nll), len(labels))
