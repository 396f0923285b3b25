"""The contract of a structured normal distribution with mean zero.

A family is a frozen dataclass of tensors (or tuples of tensors); what follows from them is computed once, when it is asked for. With ``n``
the number of elements of a draw, ``P`` the precision and ``Sigma = P^-1``, both ``[n, n]`` in row-major order and never formed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, unknown_name

N = TypeVar("N", bound="Normal")
# Numbers, a multiple of 8, whose float64 copies stay in a processor's cache.
_LOG_CHUNK = 2**14


@dataclass(frozen=True)
class Normal(ABC):
    """``N(0, P^-1)`` over tensors of one shape. Arguments ``v`` may have further leading dimensions, which count vectors."""

    families: ClassVar[dict[str, type[Normal]]] = {}

    def __init_subclass__(cls) -> None:
        Normal.families[cls.__name__] = cls

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of a draw."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the distribution."""

    @abstractmethod
    def root(self, z: Tensor) -> Tensor:
        """``R z`` for a root ``R R^T = Sigma`` of the covariance; standard normal noise becomes a draw. ``z: [..., *shape]``."""

    @abstractmethod
    def multiply_precision(self, v: Tensor) -> Tensor:
        """``P v``."""

    @abstractmethod
    def multiply_covariance(self, v: Tensor) -> Tensor:
        """``Sigma v``."""

    @abstractmethod
    def variances(self) -> Tensor:
        """Diagonal of ``Sigma``, in `shape`."""

    def trace(self) -> Tensor:
        """Trace of ``Sigma``, 0-d."""
        return self.variances().sum()

    @abstractmethod
    def logdet_precision(self) -> Tensor:
        """``log det P`` in nats, 0-d."""

    @property
    def size(self) -> int:
        """``n``."""
        return math.prod(self.shape)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw.

        Args:
            generator: The only source of randomness if given (on the device of the distribution); else the global generator.
        """
        return self.root(torch.empty(self.shape, dtype=self.like.dtype, device=self.like.device).normal_(generator=generator))

    def draw_kept(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """One draw, and what `mirror` makes its mirror image of, which may be the same tensor.

        Args:
            generator: As in `draw`.
        """
        drawn = self.draw(generator)
        return drawn, drawn

    def mirror(self, kept: Tensor, source: Normal) -> Tensor | None:
        """The mirror image of a draw in memory of its own; None if a new draw costs no more.

        Args:
            kept: From `draw_kept`.
            source: The distribution that it was drawn from.
        """
        return kept.neg() if source is self else None

    def log_prob(self, v: Tensor) -> Tensor:
        """``1/2 (log det P - v^T P v - n log 2 pi)``, one number for each vector."""
        quadratic = (v * self.multiply_precision(v)).flatten(v.dim() - len(self.shape)).sum(-1)
        return (self.logdet_precision() - quadratic - self.size * math.log(2 * math.pi)) / 2

    def entropy(self) -> Tensor:
        """``1/2 (n (1 + log 2 pi) - log det P)`` in nats, 0-d."""
        return (self.size * (1 + math.log(2 * math.pi)) - self.logdet_precision()) / 2

    def to(self: N, device: torch.device | str) -> N:
        """A copy on another device."""

        def move(value: Any) -> Any:
            return tuple(v.to(device) for v in value) if isinstance(value, tuple) else value.to(device)

        return type(self)(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


def log_sum(x: Tensor) -> Tensor:
    """``sum_i log x_i`` of positive numbers, 0-d.

    A logarithm costs as much as ten multiplications. On CPU, products of eight float32 numbers are taken in float64 first: its range holds
    ``(2^-126)^8`` and ``(2^128)^8``, so nothing is lost. That is done for a part of the numbers at a time, which stays in the cache.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return x.log().sum()
    flat = x.flatten()
    whole = flat.numel() // 8 * 8
    totals = [part.view(8, -1).prod(0, dtype=torch.float64).log().sum() for part in flat[:whole].split(_LOG_CHUNK)]
    return torch.stack([*totals, flat[whole:].double().log().sum()]).sum().to(x.dtype)


def normal_to_state(normal: Normal) -> dict[str, Any]:
    """Family and tensors, for a checkpoint."""
    values = {f.name: getattr(normal, f.name) for f in fields(normal)}
    return {"family": type(normal).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


def normal_from_state(saved: Mapping[str, Any], like: Tensor) -> Normal:
    """Inverse of `normal_to_state`; tensors are copied to the dtype and the device of a tensor.

    Args:
        saved: From `normal_to_state`.
        like: Has the dtype and the device.

    Raises:
        ConfigError: The family is unknown or its tensors are incomplete.
    """
    family = str(saved.get("family"))
    if family not in Normal.families:
        raise unknown_name("family of distributions", family, Normal.families)
    names = [f.name for f in fields(Normal.families[family])]
    if sorted(names) != sorted(set(saved) - {"family"}):
        raise ConfigError(f"the saved {family} has {sorted(set(saved) - {'family'})}, it needs {sorted(names)}")

    def copied(value: Any) -> Any:
        return tuple(v.to(like, copy=True) for v in value) if isinstance(value, (list, tuple)) else value.to(like, copy=True)

    return Normal.families[family](**{name: copied(saved[name]) for name in names})
