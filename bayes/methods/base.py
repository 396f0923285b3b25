"""The contract of a method of variational inference: a frozen record of its hyperparameters, and what it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.posterior import Posterior
from natgrad_apps.bayes.prior import WeightPrior
from natgrad_apps.bayes.tasks import Task
from natgrad_apps.bayes.weights import Weights
from natgrad_apps.errors import ConfigError, check_fraction, check_positive, unknown_name
from natgrad_apps.likelihoods import Likelihood


@dataclass
class Problem:
    """What a method is to solve; only the temperature changes.

    Attributes:
        model: Its trainable parameters are Bayesian.
        weights: They.
        task: Distribution of the targets.
        prior: Distribution of the weights.
        num_data: ``N``, the number of likelihood terms of the data set, times the augmentation factor.
        rows: Number of likelihood terms without augmentation; no batch can have more.
        temperature: ``lambda``, the weight of the KL divergence in this step.
        seed: Of everything that the method draws itself.
    """

    model: nn.Module
    weights: Weights
    task: Task
    prior: WeightPrior
    num_data: float
    rows: int
    temperature: float
    seed: int

    @property
    def scale(self) -> float:
        """``lambda / N``: the covariance is this times the inverse of the damped curvature of the mean loss."""
        return self.temperature / self.num_data

    def intrinsic(self, precision: Tensor) -> Tensor:
        """Intrinsic damping ``gamma_in = lambda p / N`` of a prior precision ``p``."""
        return precision * self.scale


@dataclass(frozen=True)
class Batch:
    """A minibatch, and the samples of the weights in this step.

    Attributes:
        inputs: Arguments of the model.
        y: Targets.
        samples: Number of weight samples.
        autocast: Whether the model runs under autocast; nothing else does.
        share: Which part of the minibatch of the step this is, in rows.
    """

    inputs: tuple[Any, ...]
    y: Tensor
    samples: int
    autocast: bool = False
    share: float = 1.0

    @property
    def weight(self) -> float:
        """What its mean counts in the mean over minibatch and samples."""
        return self.share / self.samples

    def parts(self, rows: int | None) -> list[Batch]:
        """Micro-batches of this minibatch.

        Args:
            rows: Their size, but for the last one; None for one.

        Raises:
            ConfigError: An input cannot be cut like the targets.
        """
        if rows is None:
            return [self]
        count = len(self.y)
        for x in self.inputs:
            if not isinstance(x, Tensor) or x.dim() == 0 or len(x) != count:
                given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ConfigError(f"micro-batches need inputs that are tensors with {count} rows, as many as targets, got {given}")
        ranges = [slice(start, start + rows) for start in range(0, count, rows)]
        return [replace(self, inputs=tuple(x[r] for x in self.inputs), y=self.y[r], share=len(self.y[r]) / count) for r in ranges]


@dataclass(frozen=True)
class Outcome:
    """What one weight sample gave; 0-d tensors, detached.

    Attributes:
        nll: Mean negative log-likelihood of the batch, in nats.
        squared_error: See `Task.squared_error`.
    """

    nll: Tensor
    squared_error: Tensor

    @staticmethod
    def mean(parts: Sequence[Outcome], batches: Sequence[Batch]) -> Outcome:
        """Of a whole minibatch from those of its parts."""
        if len(parts) == 1:
            return parts[0]
        shares = [batch.share for batch in batches]
        nll, squared_error = (
            torch.stack([getattr(part, name) * share for part, share in zip(parts, shares, strict=True)]).sum()
            for name in ("nll", "squared_error")
        )
        return Outcome(nll, squared_error)


class Learner(ABC):
    """What a method knows: running averages, momentum, the posterior.

    Args:
        problem: What is to be solved.
        lr: First learning rate.

    Attributes:
        posterior: The variational distribution; one object for the whole training.
        lr: Learning rate now.
        steps: Number of steps taken.
        terms: Number of likelihood terms of the last minibatch, all its parts together.
    """

    posterior: Posterior
    terms: int = 1

    def __init__(self, problem: Problem, lr: float) -> None:
        self.problem = problem
        self.lr = lr
        self.steps = 0
        self._gradients: dict[str, Tensor] = {}

    def gather(self, batch: Batch) -> Outcome:
        """Forward and backward pass at the weight sample that the model holds.

        Args:
            batch: The minibatch, or a part of it.
        """
        outputs = self.forward(batch)
        likelihood, targets = self.judge(outputs, batch)
        nll = -likelihood.log_prob(targets).mean()
        self.add(self.gradient(nll, batch))
        return Outcome(nll.detach(), self.problem.task.squared_error(outputs.detach(), targets))

    def gradient(self, nll: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Share of a part at one weight sample in the mean gradient, by parameter; absent where the loss does not depend on one."""
        live = self.problem.weights.live
        found = torch.autograd.grad(nll * batch.weight if batch.weight != 1 else nll, list(live.values()), allow_unused=True)
        return {name: g for name, g in zip(live, found, strict=True) if g is not None}

    def judge(self, outputs: Tensor, batch: Batch) -> tuple[Likelihood, Tensor]:
        """The likelihood of the outputs, and the targets in its form.

        Raises:
            ConfigError: The batch is larger than the data set, or a target is not legal.
            ShapeError: The targets do not fit the outputs.
        """
        likelihood = self.problem.task.likelihood(outputs)
        self.terms = round(likelihood.num_terms / batch.share)
        if self.terms > self.problem.rows:
            raise ConfigError(
                f"the batch has {self.terms} likelihood terms, more than num_data={self.problem.rows}; num_data counts those of "
                "the whole training set, not of a batch"
            )
        return likelihood, self.problem.task.targets(outputs, batch.y)

    def forward(self, batch: Batch) -> Tensor:
        """Outputs of the model.

        Raises:
            TypeError: They are no tensor.
        """
        with torch.autocast(next(iter(self.problem.weights.live.values())).device.type, enabled=batch.autocast):
            outputs = self.problem.model(*batch.inputs)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model must return one tensor, got {type(outputs).__name__}")
        return outputs

    @torch.no_grad()
    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the shares of one weight sample; nothing in place, because autograd may give several parameters one tensor."""
        for name, g in gradients.items():
            self._gradients[name] = self._gradients[name] + g if name in self._gradients else g

    def end_sample(self) -> None:  # noqa: B027 - nothing to do unless a method needs whole samples
        """Every part of the minibatch went through the weight sample that the model still holds."""

    def take(self) -> dict[str, Tensor]:
        """Mean gradient of the mean loss over the samples, by parameter; zero where the loss does not depend on one."""
        found, self._gradients = self._gradients, {}
        return {name: found[name] if name in found else torch.zeros_like(p) for name, p in self.problem.weights.live.items()}

    def discard(self) -> None:
        """Forget what was gathered for a step that is not taken."""
        self._gradients = {}

    @abstractmethod
    def update(self) -> bool:
        """Take a step with what was gathered; false if it was rejected because something is not finite."""

    def set_lr(self, lr: float) -> None:
        """Change the learning rate.

        Raises:
            ConfigError: It is negative or not finite.
        """
        check_positive("lr", lr, allow_zero=True)
        self.lr = float(lr)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, mean and posterior included."""
        return {"method": type(self).__name__, "lr": self.lr, "steps": self.steps, "posterior": self.posterior.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.posterior.load_state_dict(saved["posterior"])
        self.lr, self.steps = float(saved["lr"]), int(saved["steps"])
        self._gradients = {}


class Method(ABC):
    """Hyperparameters of a method; subclasses are frozen dataclasses."""

    def __post_init__(self) -> None:
        """Check what has the same meaning and range in every method that has it."""
        for name in ("lr", "damping", "initial_curvature"):
            if hasattr(self, name):
                check_positive(name, getattr(self, name), allow_zero=True)
        betas = {f"betas[{i}]": beta for i, beta in enumerate(getattr(self, "betas", ()))}
        for name, value in {n: getattr(self, n) for n in ("decay", "momentum") if hasattr(self, n)}.items() | betas.items():
            check_fraction(name, value)

    @abstractmethod
    def start(self, problem: Problem) -> Learner:
        """Begin with the model's weights as the mean.

        Raises:
            ConfigError: The method does not fit the model or the prior.
        """


def check_count(name: str, value: object) -> None:
    """Raise `ConfigError` unless a hyperparameter is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


def check_choice(name: str, value: object, legal: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless a hyperparameter is one of some words."""
    if value not in legal:
        raise unknown_name(name, str(value), legal)


class Momentum:
    """Exponential running average ``m <- b m + (1-b) g``; without bias it is ``m / correction``.

    Args:
        decay: ``b`` in [0, 1).

    Attributes:
        average: ``m`` by name; it changes in place.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.average: dict[str, Tensor] = {}

    @property
    def correction(self) -> float:
        """``1 - b^t`` after ``t`` gradients."""
        return float(1 - self.decay**self.count)

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fold in gradients; `average`."""
        self.count += 1
        for name, g in gradients.items():
            old = self.average.get(name)
            self.average[name] = g * (1 - self.decay) if old is None else old.lerp_(g, 1 - self.decay)
        return self.average

    def state_dict(self) -> dict[str, Any]:
        """Average and count."""
        return {"count": self.count, "average": {name: value.clone() for name, value in self.average.items()}}

    def load_state_dict(self, saved: Mapping[str, Any], like: Mapping[str, Tensor]) -> None:
        """Restore `state_dict` in the dtype and on the device of the parameters."""
        self.count = int(saved["count"])
        self.average = {name: value.to(like[name], copy=True) for name, value in saved["average"].items()}


def all_finite(gradients: Mapping[str, Tensor]) -> Tensor:
    """Whether all entries are finite, 0-d."""
    return torch.stack([g.sum() for g in gradients.values()]).isfinite().all()
