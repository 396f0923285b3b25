"""What methods share that treat all weights as one vector."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.distributions import Normal
from natgrad_apps.bayes.methods.base import Batch, Learner, Momentum, Outcome, Problem
from natgrad_apps.bayes.per_example import ExampleGradients, LinearPart, RowsPart, check_examples_independent, per_example_rows
from natgrad_apps.bayes.posterior import Part, Posterior
from natgrad_apps.errors import ConfigError
from natgrad_apps.layers.discover import discover
from natgrad_apps.likelihoods import Likelihood
from natgrad_apps.statistics.capture import Call, Capture


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

    Args:
        problem: What is to be solved.
        lr: First learning rate.
        momentum: Weight of the old value in the running average of the gradient.
    """

    def __init__(self, problem: Problem, lr: float, momentum: float) -> None:
        super().__init__(problem, lr)
        self.flat = Flat(problem.weights.live)
        self.momentum = Momentum(momentum)
        self._mean = self.flat.full(0.0)
        self._intrinsic_of: tuple[list[Tensor | None], float] = ([None] * len(self.flat.names), 0.0)

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

    def move(self, numerator: Tensor, denominator: Tensor | None = None, factor: float = 1.0) -> None:
        """``mu <- mu - lr factor numerator / denominator``."""
        live, rate = list(self.problem.weights.live.values()), -self.lr * factor
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


class RowsLearner(FlatLearner):
    """A flat learner that looks at per-example gradients ``J_n^T v_n``: of the log-likelihood, and of further cotangents (`columns`).

    Linear layers that are called once, on rows, give them as outer products of inputs and output gradients; every other parameter has
    them from `torch.func`.

    Args:
        problem: What is to be solved.
        lr: First learning rate.
        momentum: Weight of the old value in the running average of the gradient.
    """

    def __init__(self, problem: Problem, lr: float, momentum: float) -> None:
        super().__init__(problem, lr, momentum)
        found = discover(problem.model)
        self._layers = {
            layer.modules[0]: layer
            for layer in found.layers
            if layer.spec.kind == "linear" and len(layer.modules) == 1 and not _reads_weight(layer.modules[0])
        }
        self._capture = Capture(list(self._layers.values()))
        self._where = self.flat.slices()

    def gather(self, batch: Batch) -> Outcome:
        """Gradients of the examples at the weight sample that the model holds."""
        check_examples_independent(self.problem.model)
        task = self.problem.task
        with self._capture.open():
            outputs = self.forward(batch)
            likelihood, targets = self.judge(outputs, batch)
            with torch.no_grad():
                nll = -likelihood.log_prob(targets).mean()
                (score,) = likelihood.score(targets)
            share = 1 / (likelihood.num_terms * batch.samples)
            calls = self._single_calls(len(score))
            if self.steps == 0:
                calls = self._verified(calls, outputs, score)
            with torch.no_grad():
                examples = self._examples(batch, outputs, calls, score)
                total = examples.sum().mul_(-share)
                self.fold(examples, share)
                for column in self.columns(likelihood):
                    self.fold_column(self._examples(batch, outputs, calls, column), share)
        self._gradients["weights"] = self._gradients["weights"] + total if "weights" in self._gradients else total
        return Outcome(nll, task.squared_error(outputs.detach(), targets))

    def _single_calls(self, examples: int) -> list[Call]:
        """Calls of the layers that were called once, on one row for each example."""
        count = Counter(call.module for call in self._capture.calls)
        single = [call for call in self._capture.calls if call.module in self._layers and count[call.module] == 1]
        return [call for call in single if call.x.dim() == 2 and len(call.x) == examples and call.x._version == call.version]

    def _verified(self, calls: Sequence[Call], outputs: Tensor, score: Tensor) -> list[Call]:
        """Calls whose outer products add up to autograd's gradient; a layer whose weight is also read elsewhere is left to `torch.func`."""
        verified = []
        tolerance = 1e-3 if score.dtype in (torch.float32, torch.float64) else 5e-2
        for call in calls:
            layer = self._layers[call.module]
            wanted: list[Any] = [call.edge, *layer.parameters]
            (g, *exact) = torch.autograd.grad(outputs, wanted, score, retain_graph=True)
            own, dtype = iter(exact), self.flat.dtype
            g = g.to(dtype)
            pairs = [(next(own), g.mT @ call.x.to(dtype))] if layer.weight is not None else []
            pairs += [(next(own), g.sum(0))] if layer.bias is not None else []
            if all(torch.allclose(a.to(dtype), b, rtol=0, atol=tolerance * float(b.abs().max())) for a, b in pairs):
                verified.append(call)
            else:
                del self._layers[call.module]
        return verified

    def _examples(self, batch: Batch, outputs: Tensor, calls: Sequence[Call], cotangents: Tensor) -> ExampleGradients:
        """``J_n^T v_n`` for every example."""
        weights, dtype = self.problem.weights, self.flat.dtype
        found = torch.autograd.grad(outputs, [c.edge for c in calls], cotangents, retain_graph=True, allow_unused=True) if calls else ()
        linear, covered = [], set()
        for call, g in zip(calls, found, strict=True):
            layer = self._layers[call.module]
            own = [None if p is None else weights.names[p] for p in (layer.weight, layer.bias)]
            covered.update(own)
            gradient = call.x.new_zeros(len(call.x), layer.spec.d_out) if g is None else g
            weight, bias = (None if name is None else self._where[name] for name in own)
            linear.append(LinearPart(weight, bias, call.x.to(dtype), gradient.to(dtype)))
        names = [name for name in self.flat.names if name not in covered]
        rest = None
        if names:
            live = {name: weights.live[name] for name in names}
            chunks = per_example_rows(self.problem.model, live, batch.inputs, cotangents)
            rows = torch.cat([torch.cat([chunk[name].flatten(1).to(dtype) for name in names], dim=1) for chunk in chunks])
            rest = RowsPart([self._where[name] for name in names], rows)
        return ExampleGradients(self.flat.size, len(cotangents), linear, rest)

    def take_vector(self) -> Tensor:
        """Mean gradient ``[n]`` of the mean loss over the samples."""
        found, self._gradients = self._gradients, {}
        return found["weights"]

    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Look at the gradients of the log-likelihood of examples.

        Args:
            examples: The gradients.
            share: ``1 / (terms samples)``.
        """

    def columns(self, likelihood: Likelihood) -> Iterator[Tensor]:
        """Further cotangents ``[N, ...]`` whose gradients are wanted."""
        del likelihood
        yield from ()

    def fold_column(self, examples: ExampleGradients, share: float) -> None:
        """Look at the gradients of one of `columns`.

        Args:
            examples: The gradients.
            share: As in `fold`.
        """


def _reads_weight(module: nn.Module) -> bool:
    """Whether a module's weight is computed (parametrized), so that its gradient is no outer product."""
    return nn.utils.parametrize.is_parametrized(module)


def check_size(size: int, largest: int, what: str) -> None:
    """Raise `ConfigError` if a model has too many weights for a method.

    Args:
        size: Number of weights.
        largest: Number that is accepted.
        what: The method, and what it stores.
    """
    if size > largest:
        raise ConfigError(f"{what} of {size} weights needs {float(size**2):.2g} entries; the limit is {largest} weights")
