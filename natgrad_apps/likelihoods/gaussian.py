"""Gaussian likelihood with a fixed, learned or predicted scale."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import log, pi
from typing import Literal

import torch
import torch.distributions as td
from torch import Tensor

from natgrad_apps.errors import ConfigError, ShapeError, check_positive
from natgrad_apps.likelihoods.base import (
    Likelihood,
    Targets,
    at_least_float32,
    check_comparable,
    check_delta,
    check_on_cpu,
    check_output,
    check_tensor_targets,
    has_event,
)

Spread = Literal["scale", "log_std"]


class Gaussian(Likelihood):
    """``y ~ N(mean, scale^2)``, independent over the event.

    Fisher: ``1/scale^2`` of the mean, ``2/scale^2`` of the scale, 2 of the logarithm of the scale.

    Shapes: mean ``[terms]``, or ``[*terms, event]`` with the last dimension one event; `scale` and `log_std` broadcast to it; targets have
    its shape.

    Args:
        mean: The mean, or a ``torch.distributions.Normal`` or ``Independent(Normal, 1)``, which brings its own scale.
        scale: Standard deviation; 1 if neither it nor `log_std` is given. It is an output too if it requires gradients.
        log_std: Logarithm of the standard deviation. A leaf that requires gradients (a parameter) is not an output: its Fisher is known
            (`known_fisher`). A tensor with gradient history (a head of the network) is an output.

    Raises:
        TypeError: Another distribution, not a tensor, or not floating.
        ShapeError: No dimension, empty, or a scale that does not broadcast to the mean.
        ConfigError: Two scales at once, or a scale that is not positive.
    """

    _parameter: Tensor | None

    def __init__(self, mean: Tensor | td.Distribution, scale: float | Tensor | None = None, log_std: Tensor | None = None) -> None:
        if isinstance(mean, td.Distribution):
            if scale is not None or log_std is not None:
                raise ConfigError(
                    "Gaussian: a distribution brings its own scale, so scale and log_std must not be given; pass distribution.mean instead"
                )
            base = base_distribution("Gaussian", mean, td.Normal)
            assert isinstance(base, td.Normal)
            mean, scale = base.loc, base.scale
        elif isinstance(scale, Tensor):
            check_on_cpu(
                scale.detach() <= 0, "Gaussian: scale must be > 0, got values that are not; use log_std for an unconstrained scale"
            )
        if scale is not None and log_std is not None:
            raise ConfigError("Gaussian: scale and log_std were both given; give one of them")
        mean = check_output("Gaussian", "mean", mean, min_ndim=1)
        kind: Spread = "scale" if log_std is None else "log_std"
        spread: Tensor
        if log_std is not None:
            spread = check_output("Gaussian", "log_std", log_std, min_ndim=0)
        elif isinstance(scale, Tensor):
            spread = check_output("Gaussian", "scale", scale, min_ndim=0)
        else:
            value = 1.0 if scale is None else scale
            check_positive("Gaussian: scale", value)
            spread = at_least_float32(mean.detach()).new_full((), value)
        learned = log_std is not None and log_std.is_leaf and log_std.requires_grad
        self._set_up(mean, expanded(spread, mean.shape, kind), kind, spread.requires_grad and not learned)
        self._parameter = log_std if learned else None

    def _set_up(self, mean: Tensor, spread: Tensor, kind: Spread, spread_is_output: bool) -> None:
        self._mean, self._spread, self._kind, self._spread_is_output = mean, spread, kind, spread_is_output
        self._event = has_event(mean)
        self.outputs = (mean, spread) if spread_is_output else (mean,)
        self.term_shape = mean.shape[:-1] if self._event else mean.shape

    @cached_property
    def _std(self) -> Tensor:
        spread = at_least_float32(self._spread.detach())
        return spread if self._kind == "scale" else spread.exp()

    @cached_property
    def _log_std(self) -> Tensor:
        spread = at_least_float32(self._spread.detach())
        return spread.log() if self._kind == "scale" else spread

    def _sum_event(self, x: Tensor) -> Tensor:
        return x.sum(-1) if self._event else x

    @property
    def num_columns(self) -> int:
        """The size of the event, twice if the scale is an output."""
        return len(self.outputs) * (self._mean.shape[-1] if self._event else 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws in the shape of the mean, float32 or wider."""
        mean = at_least_float32(self._mean.detach())
        return torch.empty_like(mean).normal_(generator=generator).mul_(self._std).add_(mean)

    def log_prob(self, targets: Targets) -> Tensor:
        """Log-density, summed over the event."""
        self.check_targets(targets)
        assert isinstance(targets, Tensor)
        mean, spread = at_least_float32(self._mean), at_least_float32(self._spread)
        std, log_std = (spread, spread.log()) if self._kind == "scale" else (spread.exp(), spread)
        z = (targets.to(mean.dtype) - mean) / std
        return self._sum_event(-0.5 * z.square() - log_std - 0.5 * log(2 * pi))

    def check_targets(self, targets: Targets) -> None:
        """Targets are floating, in the shape of the mean."""
        checked = check_tensor_targets("Gaussian", targets, self._mean.shape, "one value for each mean")
        if not checked.is_floating_point():
            raise TypeError(f"Gaussian: targets must be floating, got dtype {checked.dtype}; convert with .to(mean.dtype)")

    def unchecked_score(self, targets: Targets) -> tuple[Tensor, ...]:
        """``z / scale`` with ``z = (y - mean)/scale``; for a scale that is an output ``(z^2 - 1)/scale``, for its logarithm ``z^2 - 1``."""
        assert isinstance(targets, Tensor)
        mean = at_least_float32(self._mean.detach())
        z = (targets.to(mean.dtype) - mean) / self._std
        scores = [(z / self._std).to(self._mean.dtype)]
        if self._spread_is_output:
            excess = z.square() - 1
            scores.append((excess / self._std if self._kind == "scale" else excess).to(self._spread.dtype))
        return tuple(scores)

    def fisher_columns(self) -> Iterator[tuple[Tensor, ...]]:
        """``e_d / scale`` for the mean; for a scale that is an output ``sqrt(2) e_d / scale``, for its logarithm ``sqrt(2) e_d``."""
        roots = [(1 / self._std).expand(self._mean.shape)]
        if self._spread_is_output:
            roots.append(2**0.5 / self._std if self._kind == "scale" else torch.full_like(self._std, 2**0.5))
        for which, root in enumerate(roots):
            for d in range(self._mean.shape[-1] if self._event else 1):
                column = [torch.zeros_like(output, memory_format=torch.contiguous_format).detach() for output in self.outputs]
                part = (..., d) if self._event else ...
                column[which][part] = root[part].to(column[which].dtype)
                yield tuple(column)

    def known_fisher(self) -> list[tuple[Tensor, Tensor]]:
        """2 for each log standard deviation, times the number of dimensions of one term that share it."""
        if self._parameter is None:
            return []
        sharing = self._mean.numel() / (self._parameter.numel() * self.num_terms)
        return [(self._parameter, torch.full_like(self._parameter, 2 * sharing, requires_grad=False))]

    def kl(self, other: Likelihood) -> Tensor:
        """``log(s'/s) + (s^2 + (m - m')^2)/(2 s'^2) - 1/2``, summed over the event."""
        check_comparable(self, other)
        assert isinstance(other, Gaussian)
        # with u = 2 log(s/s') the scale part is (e^u - 1 - u)/2, which does not cancel for near scales and is never negative
        u = 2 * (self._log_std - other._log_std)
        shift = (at_least_float32(self._mean.detach()) - at_least_float32(other._mean.detach())) / other._std
        return self._sum_event(0.5 * (torch.expm1(u) - u) + 0.5 * shift.square())

    def output_quadratic(self, delta: tuple[Tensor, ...]) -> Tensor:
        """``(delta_mean/scale)^2`` plus ``2 (delta_scale/scale)^2`` or ``2 delta_log_std^2``, summed over the event."""
        changes = check_delta(self, delta)
        total = (changes[0] / self._std).square()
        if self._spread_is_output:
            total = total + 2 * (changes[1] / self._std if self._kind == "scale" else changes[1]).square()
        return self._sum_event(total)

    def detach(self) -> Gaussian:
        """The same likelihood over detached copies; a learned `log_std` becomes a fixed one."""
        copy = object.__new__(type(self))
        copy._set_up(self._mean.detach().clone(), self._spread.detach().clone(), self._kind, self._spread_is_output)
        copy._parameter = None
        return copy


def expanded(spread: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Broadcast the scale to the mean, inside the graph, so that its gradients carry the term dimensions.

    Raises:
        ShapeError: It does not broadcast.
    """
    if spread.shape == shape:
        return spread
    try:
        return spread.expand(shape)
    except RuntimeError as error:
        raise ShapeError(f"Gaussian: {name} must broadcast to the mean's shape {tuple(shape)}, got {tuple(spread.shape)}") from error


def base_distribution(owner: str, given: td.Distribution, legal: type[td.Distribution]) -> td.Distribution:
    """Unwrap ``Independent(legal, 1)``.

    Raises:
        TypeError: Another distribution.
        ShapeError: An `Independent` with another number of event dimensions, or over a one-dimensional distribution.
    """
    base = given.base_dist if isinstance(given, td.Independent) else given
    if not isinstance(base, legal):
        name = f"{type(given).__name__} of {type(base).__name__}" if base is not given else type(given).__name__
        accepted = f"torch.distributions.{legal.__name__} or Independent({legal.__name__}, 1)"
        raise TypeError(f"{owner} accepts a tensor, {accepted}, got {name}")
    if isinstance(given, td.Independent) and (given.reinterpreted_batch_ndims != 1 or len(base.batch_shape) <= 1):
        raise ShapeError(
            f"{owner}: Independent must have one event dimension and at least one batch dimension, got {given.reinterpreted_batch_ndims} "
            f"event dimensions over the shape {tuple(base.batch_shape)}; flatten the event to [*terms, event]"
        )
    return base
