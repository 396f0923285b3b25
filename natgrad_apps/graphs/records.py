"""What a trainer says about its data, its epochs and its batches, whatever the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from natgrad_apps.likelihoods import Likelihood


class PartMeasures(Protocol):
    """How good the predictions for one part of the data are."""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats."""

    @property
    def score(self) -> float:
        """What epochs are chosen by and targets are set for, larger is better, in [0, 1]."""

    def to_dict(self) -> dict[str, float | int]:
        """As plain values."""

    def tracked(self) -> dict[str, float]:
        """What ``metrics.csv`` keeps of each epoch."""


class Contents(Protocol):
    """What is learned from."""

    @property
    def name(self) -> str:
        """Of the dataset."""

    def __str__(self) -> str:
        """Its size in words."""


class Parts(Protocol):
    """Training, validation and test parts."""

    @property
    def name(self) -> str:
        """Of the split."""

    @property
    def seed(self) -> int | None:
        """Of a random split."""

    def __str__(self) -> str:
        """In words, to stand beside every number."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch did.

    Attributes:
        epoch: Its number, from 1.
        loss: Mean training loss of its batches, each before its step.
        train: Measures of the training part after the epoch.
        val: Of the validation part; None without any.
        test: Of the test part; None without any.
    """

    epoch: int
    loss: float
    train: PartMeasures
    val: PartMeasures | None
    test: PartMeasures | None

    def numbers(self) -> dict[str, float]:
        """For ``metrics.csv``."""
        found = {"loss": self.loss}
        for name, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if part is not None:
                found |= {f"{name}_{key}": value for key, value in part.tracked().items()}
        return found


@dataclass
class Progress:
    """How far a run is; it goes into checkpoints.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the epoch that has begun.
        loss: Sum of their losses, each times its terms.
        terms: Sum of their terms.
        best_epoch: The epoch that was chosen so far.
        best_score: Its score, larger is better.
        waited: Epochs since the lowest validation loss.
        lowest: The lowest validation loss.
        first_hit: First epoch whose validation score reached the target.
        seconds: Training time: forward, backward and step, without evaluation.
        statistics_seconds: The part of it that gathering Fisher statistics took.
    """

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    terms: float = 0.0
    best_epoch: int = 0
    best_score: float = float("-inf")
    waited: int = 0
    lowest: float = float("inf")
    first_hit: int | None = None
    seconds: float = 0.0
    statistics_seconds: float = 0.0


@dataclass
class Best:
    """The epoch that is reported."""

    model: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What a forward pass of a batch gives.

    Attributes:
        likelihood: Whose Fisher is estimated.
        loss: Mean over the terms, a 0-d tensor with its graph.
        count: Number of terms of the loss.
    """

    likelihood: Likelihood
    loss: Tensor
    count: int
