"""What methods share that treat all weights as one vector."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import Normal
from natgrad_apps.bayes.methods.base import Learner, Momentum, Problem
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.errors import ConfigError


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

    def parts(self, vector: Tensor) -> Sequence[Tensor]:
        """Views of the entries of each parameter."""
        found: Sequence[Tensor] = vector.split(self._sizes)
        return found

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Inverse of `pack`, in the dtypes of the parameters; views where these are the vector's."""
        parts = self.parts(vector)
        return [part.reshape(shape).to(dtype) for part, shape, dtype in zip(parts, self._shapes, self._dtypes, strict=True)]

    @torch.no_grad()
    def gather(self, values: Mapping[str, Tensor]) -> Tensor:
        """`pack` of values by name."""
        return self.pack([values[name] for name in self.names])

    def slices(self) -> dict[str, slice]:
        """Where each parameter is in the vector."""
        stops = list(itertools.accumulate(self._sizes))
        return {name: slice(stop - size, stop) for name, stop, size in zip(self.names, stops, self._sizes, strict=True)}

    def full(self, value: float) -> Tensor:
        """A constant vector."""
        return torch.full((self.size,), value, dtype=self.dtype, device=self.device)


class FlatLearner(Learner):
    """A learner whose posterior is one part over all weights.

    A step: `absorb` gets the gradient of each weight sample, `collect` adds up what else the method wants of the batch, `advance` updates
    averages and mean with both.

    Args:
        problem: What is to be solved.
        lr: First learning rate.
        momentum: Weight of the old value in the running average of the gradient.
    """

    def __init__(self, problem: Problem, lr: float, momentum: float) -> None:
        super().__init__(problem, lr)
        self.flat = Flat(problem.weights.live)
        self.momentum = Momentum(momentum)
        self._sample: Tensor | None = None
        self._gradient: Tensor | None = None
        self._moment: Tensor | None = None
        self._mean = self.flat.full(0.0)
        self._intrinsic_of: tuple[Sequence[Tensor | None], float] = ([None] * len(self.flat.names), 0.0)

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

    @torch.no_grad()
    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the shares of a part at one weight sample; zero where the loss does not depend on a parameter."""
        live = self.problem.weights.live
        found = self.flat.pack([gradients[name] if name in gradients else torch.zeros_like(p) for name, p in live.items()])
        self._sample = found if self._sample is None else self._sample.add_(found)

    @torch.no_grad()
    def end_sample(self) -> None:
        """Hand over the gradient of the sample."""
        gradient, self._sample = self._sample, None
        assert gradient is not None
        self.absorb(gradient)

    def absorb(self, gradient: Tensor) -> None:
        """Add the share ``[n]`` of one weight sample, which the model holds now; takes the tensor's memory."""
        self._gradient = gradient if self._gradient is None else self._gradient.add_(gradient)

    def collect(self, moment: Tensor) -> None:
        """Add to the moment of the batch; takes the tensor's memory."""
        self._moment = moment if self._moment is None else self._moment.add_(moment)

    def discard(self) -> None:
        """Forget gradient and moment of the step."""
        super().discard()
        self._sample = self._gradient = self._moment = None

    @torch.no_grad()
    def update(self) -> bool:
        """See `Learner`."""
        gradient, moment = self._gradient, self._moment
        assert gradient is not None
        total = torch.dot(gradient, gradient)
        finite = bool((total if moment is None else total + moment.sum()).isfinite())
        try:
            if finite:
                self.steps += 1
                self.advance(gradient, moment)
                self.follow()
        finally:
            self.discard()
        return finite

    @abstractmethod
    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """Update averages and mean.

        Args:
            gradient: Mean gradient ``[n]`` of the mean loss over the samples; its memory may be taken.
            moment: What was collected, of any shape; its memory may be taken.
        """

    def mean(self) -> Tensor:
        """``mu: [n]``, in memory that the next call takes."""
        return self._gathered(self.problem.weights.mean)

    def deviation(self) -> Tensor:
        """``mu - mu_0: [n]`` with the mean of the prior, in the memory of `mean`."""
        return self._gathered(self.problem.prior.deviation(self.problem.weights.mean))

    def _gathered(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values[name].reshape(-1).to(self.flat.dtype) for name in self.flat.names], out=self._mean)

    def intrinsic(self) -> Tensor:
        """``gamma_in: [n]``; made again when a precision or the temperature has changed."""
        prior, live = self.problem.prior, self.problem.weights.live
        precisions, scale = [prior.of(name) for name in live], self.problem.scale
        last, last_scale = self._intrinsic_of
        if scale != last_scale or any(new is not old for new, old in zip(precisions, last, strict=True)):
            values = [self.problem.intrinsic(value).to(self.flat.dtype) for value in precisions]
            self._intrinsic = torch.cat([value.reshape(-1).expand(p.numel()) for value, p in zip(values, live.values(), strict=True)])
            self._intrinsic_of = (precisions, scale)
        return self._intrinsic

    def pulled(self, gradient: Tensor) -> Tensor:
        """``g + gamma_in (mu - mu_0)``, in the memory of the gradient: the mean is read where it is."""
        away = self.problem.prior.deviation(self.problem.weights.mean)
        values = [away[name].to(self.flat.dtype) for name in self.flat.names]
        shapes = [value.shape for value in values]
        parts, weights = ([part.view(s) for part, s in zip(self.flat.parts(v), shapes, strict=True)] for v in (gradient, self.intrinsic()))
        torch._foreach_addcmul_(parts, weights, values)
        return gradient

    def move(self, numerator: Tensor, denominator: Tensor | None = None, factor: float = 1.0) -> None:
        """``mu <- mu - lr factor numerator / denominator``."""
        live: list[Tensor] = list(self.problem.weights.live.values())
        rate = -self.lr * factor
        if denominator is None:
            torch._foreach_add_(live, self.flat.unpack(numerator), alpha=rate)
        else:
            torch._foreach_addcdiv_(live, self.flat.unpack(numerator), self.flat.unpack(denominator), value=rate)

    def average(self, gradient: Tensor) -> Tensor:
        """The running average of the gradient ``m``; ``m / momentum.correction`` has no bias."""
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


def check_size(size: int, largest: int, what: str) -> None:
    """Raise `ConfigError` if a model has too many weights for a method.

    Args:
        size: Number of weights.
        largest: Number that is accepted.
        what: The method, and what it stores.
    """
    if size > largest:
        raise ConfigError(f"{what} of {size} weights needs {float(size**2):.2g} entries; the limit is {largest} weights")
