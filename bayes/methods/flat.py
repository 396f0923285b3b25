"""What methods share that treat all weights as one vector."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import Normal
from natgrad_apps.bayes.methods.base import Batch, Learner, Momentum, Outcome, Problem
from natgrad_apps.bayes.per_example import check_examples_independent, per_example_rows
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Likelihood


class Flat:
    """All trainable parameters as one vector, in the order of the model and in the widest of their dtypes (at least float32).

    Args:
        live: The parameters by name.
    """

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self.names = tuple(live)
        self.dtype = reduce(torch.promote_types, (p.dtype for p in live.values()), torch.float32)
        self.device = next(iter(live.values())).device
        self._shapes = [p.shape for p in live.values()]
        self._dtypes = [p.dtype for p in live.values()]
        self._sizes = [p.numel() for p in live.values()]
        self.size = sum(self._sizes)

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """``[n]`` from tensors in the shapes of the parameters."""
        return torch.cat([v.reshape(-1).to(self.dtype) for v in values])

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Inverse of `pack`, in the dtypes of the parameters; views where these are the vector's."""
        parts = vector.split(self._sizes)
        return [part.reshape(shape).to(dtype) for part, shape, dtype in zip(parts, self._shapes, self._dtypes, strict=True)]

    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """`pack` of values by name."""
        return self.pack([values[name] for name in self.names])

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """``[N, n]`` from tensors with a leading dimension."""
        return torch.cat([values[name].flatten(1).to(self.dtype) for name in self.names], dim=1)

    def full(self, value: float) -> Tensor:
        """A constant vector."""
        return torch.full((self.size,), value, dtype=self.dtype, device=self.device)


class FlatLearner(Learner):
    """A learner whose posterior is one part over all weights.

    Args:
        problem: What is to be solved.
        lr: First learning rate.
        momentum: Weight of the old value in the running average of the gradient.
    """

    def __init__(self, problem: Problem, lr: float, momentum: float) -> None:
        super().__init__(problem, lr)
        self.flat = Flat(problem.weights.live)
        self.momentum = Momentum(momentum)

    def begin(self) -> None:
        """Make the posterior, once the averages have their first values."""
        part = Part(self.flat.names, self.normal(), self.flat.pack, self.flat.unpack)
        self.posterior = Posterior(lambda: self.problem.weights.mean, {"weights": part})

    @abstractmethod
    def normal(self) -> Normal:
        """The posterior's distribution from the averages."""

    def follow(self) -> None:
        """Let the posterior have the averages' values."""
        self.posterior.replace({"weights": self.normal()})

    def mean(self) -> Tensor:
        """``mu: [n]``."""
        return self.flat.gather(self.problem.weights.mean)

    def intrinsic(self) -> Tensor:
        """``gamma_in: [n]``."""
        prior, live = self.problem.prior, self.problem.weights.live
        parts = [self.problem.intrinsic(prior.of(n)).to(self.flat.dtype).expand(p.numel()) for n, p in live.items()]
        return torch.cat(parts)

    def move(self, direction: Tensor) -> None:
        """``mu <- mu - lr direction``."""
        live = self.problem.weights.live
        torch._foreach_add_(list(live.values()), self.flat.unpack(direction), alpha=-self.lr)

    def average(self, gradient: Tensor) -> Tensor:
        """Momentum."""
        return self.momentum({"weights": gradient})["weights"]

    def state_dict(self) -> dict[str, Any]:
        """Momentum and `averages`."""
        averages = {name: value.clone() for name, value in self.averages().items()}
        return {**super().state_dict(), "momentum": self.momentum.state_dict(), "averages": averages}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        super().load_state_dict(saved)
        like = self.flat.full(0.0)
        self.momentum.load_state_dict(saved["momentum"], {"weights": like})
        for name, value in saved["averages"].items():
            setattr(self, name, value.to(like, copy=True))

    @abstractmethod
    def averages(self) -> dict[str, Tensor]:
        """What has to be saved, by attribute."""


class RowsLearner(FlatLearner):
    """A flat learner that looks at per-example gradients: rows ``J_n^T v_n``, with ``v_n`` from `cotangents`."""

    def gather(self, batch: Batch, noise: Mapping[str, Tensor]) -> Outcome:
        """Gradients of the examples at the weight sample that the model holds."""
        del noise
        check_examples_independent(self.problem.model)
        task, live = self.problem.task, self.problem.weights.live
        with torch.no_grad():
            outputs = self.forward(batch)
            likelihood, targets = self.judge(outputs, batch)
            nll = -likelihood.log_prob(targets).mean()
            (score,) = likelihood.score(targets)
            share = 1 / (likelihood.num_terms * batch.samples)
            total = torch.zeros_like(self.flat.full(0.0))
            for chunk in per_example_rows(self.problem.model, live, batch.inputs, score):
                rows = self.flat.rows(chunk)
                total.add_(rows.sum(0), alpha=-share)
                self.fold(rows, share)
            for column in self.columns(likelihood):
                for chunk in per_example_rows(self.problem.model, live, batch.inputs, column):
                    self.fold_column(self.flat.rows(chunk), share)
        self._gradients["weights"] = self._gradients["weights"] + total if "weights" in self._gradients else total
        return Outcome(nll, task.squared_error(outputs, targets))

    def take_vector(self) -> Tensor:
        """Mean gradient ``[n]`` of the mean loss over the samples."""
        found, self._gradients = self._gradients, {}
        return found["weights"]

    def fold(self, rows: Tensor, share: float) -> None:
        """Look at gradients ``[N, n]`` of the log-likelihood of examples.

        Args:
            rows: The gradients.
            share: ``1 / (terms samples)``.
        """

    def columns(self, likelihood: Likelihood) -> Iterator[Tensor]:
        """Further cotangents ``[N, ...]`` whose rows are wanted."""
        del likelihood
        yield from ()

    def fold_column(self, rows: Tensor, share: float) -> None:
        """Look at the rows of one of `columns`.

        Args:
            rows: ``[N, n]``.
            share: As in `fold`.
        """


def check_size(size: int, largest: int, what: str) -> None:
    """Raise `ConfigError` if a model has too many weights for a method.

    Args:
        size: Number of weights.
        largest: Number that is accepted.
        what: The method, and what it stores.
    """
    if size > largest:
        raise ConfigError(f"{what} of {size} weights needs {float(size**2):.2g} entries; the limit is {largest} weights")
