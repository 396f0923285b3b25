r"""Which nodes count: the terms of the loss and of the Fisher, with their weights.

The loss is a weighted mean over nodes, ``L = sum_i w_i l_i / sum_i w_i`` with ``l_i = -log p(y_i)``. Labelled nodes have ``w_i = 1``.
Pseudo-labels (Izadi et al. 2020) add the unlabelled nodes ``U`` with the network's own prediction as their label and the weight
``w_i = lambda_t N_lab / |U|``, so that all of them together weigh ``lambda_t = (t/T)^gamma`` of the labelled ones, as the sum of two means
in the published code does.

The Fisher is that of a weighted mean too, ``F = sum_i v_i F_i / sum_i v_i``; ``v`` is 1 on labelled nodes only, or ``w``, or 1 everywhere.
It needs no labels, so every choice is legal with every loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from natgrad_apps.errors import ConfigError

FisherNodes = Literal["labelled", "counted", "all"]


@dataclass(frozen=True)
class PseudoLabels:
    """Predicted labels for nodes without one.

    Attributes:
        enabled: Whether there are any.
        gamma: Exponent of the schedule ``lambda_t = (t/T)^gamma``; 0 keeps the full weight throughout.
        kind: hard takes the most probable class, soft the whole distribution.
        confidence: Nodes whose largest probability is below this are left out.
        predict: train predicts with dropout, from the forward pass of the step; eval without, which costs one more forward pass.
    """

    enabled: bool = False
    gamma: float = 5.0
    kind: Literal["hard", "soft"] = "hard"
    confidence: float = 0.0
    predict: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ConfigError(f"gamma must be >= 0, got {self.gamma!r}")
        if not 0 <= self.confidence < 1:
            raise ConfigError(f"confidence must be in [0, 1), got {self.confidence!r}")

    def weight(self, epoch: int, epochs: int) -> float:
        """``lambda_t``, for ``t = 1 .. T``."""
        return (epoch / epochs) ** self.gamma if self.enabled else 0.0


@dataclass(frozen=True)
class Counted:
    """The terms of one epoch.

    Attributes:
        weights: ``w: [N]``.
        support: Indices of the nodes whose weight may differ from zero.
        targets: ``[N, C]`` probabilities of the labels (one-hot for hard ones); rows of weight zero mean nothing.
    """

    weights: Tensor
    support: Tensor
    targets: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """``sum_i w_i l_i / sum_i w_i``, a 0-d tensor; ``logits: [N, C]``."""
        weights = self.weights[self.support]
        log_p = F.log_softmax(logits[self.support], -1)
        return -(weights * (self.targets[self.support] * log_p).sum(-1)).sum() / weights.sum()


class Counter:
    """Makes the terms of each epoch.

    Args:
        y: Classes ``[N]``; only those of `train` are read.
        classes: Number of classes ``C``.
        train: Indices of the labelled nodes.
        pseudo: Pseudo-labels.
        epochs: ``T``.
    """

    def __init__(self, y: Tensor, classes: int, train: Tensor, pseudo: PseudoLabels, epochs: int) -> None:
        self.pseudo, self.epochs, self.train = pseudo, epochs, train
        self._labels = torch.zeros((len(y), classes), device=y.device)
        self._labels[train] = F.one_hot(y[train], classes).to(self._labels.dtype)
        self._unlabelled = torch.ones(len(y), dtype=torch.bool, device=y.device)
        self._unlabelled[train] = False
        self.labelled = torch.zeros(len(y), device=y.device)
        self.labelled[train] = 1.0
        self._all = torch.arange(len(y), device=y.device)

    def count(self, epoch: int, predictions: Tensor) -> Counted:
        """The terms of an epoch.

        Args:
            epoch: ``t``, from 1.
            predictions: Detached logits ``[N, C]`` that pseudo-labels are made of.
        """
        share = self.pseudo.weight(epoch, self.epochs)
        if share == 0.0:
            return Counted(self.labelled, self.train, self._labels)
        p = predictions.softmax(-1)
        sure, best = p.max(-1)
        kept = self._unlabelled & (sure >= self.pseudo.confidence)
        guessed = p if self.pseudo.kind == "soft" else F.one_hot(best, p.shape[1]).to(p.dtype)
        each = share * len(self.train) / kept.sum().clamp_min(1)
        weights = torch.where(kept, each.to(self.labelled.dtype), self.labelled)
        targets = torch.where(kept.unsqueeze(1), guessed.to(self._labels.dtype), self._labels)
        return Counted(weights, self._all, targets)

    def fisher(self, nodes: FisherNodes, counted: Counted) -> tuple[Tensor, Tensor]:
        """Weights ``v: [N]`` of the Fisher's terms, and the nodes whose weight may differ from zero."""
        if nodes == "labelled":
            return self.labelled, self.train
        if nodes == "counted":
            return counted.weights, counted.support
        return torch.ones_like(self.labelled), self._all
