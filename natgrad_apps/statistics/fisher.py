"""What is estimated: the kind of Fisher, how shared weights are treated, and which part of the batch is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.likelihoods import Likelihood

KINDS = ("mc", "exact", "empirical", "forward_only")
SHARING = ("expand", "reduce")


@dataclass(frozen=True)
class Subsample:
    """Statistics from a part of the batch, with the expected value unchanged.

    Every ``units``-th unit (example) and every ``positions``-th shared position is used. The first one moves on by one
    with each batch, so every unit and position is used in turn. Sums are scaled back by the fraction that was used.
    The position stride acts on second moments of rows (the factors of K-FAC with ``expand``); whatever sums over the
    positions of a unit first uses all of them.

    Attributes:
        units: Stride over units, 1 uses all.
        positions: Stride over shared positions, 1 uses all.
    """

    units: int = 1
    positions: int = 1

    def __post_init__(self) -> None:
        for name, value in (("units", self.units), ("positions", self.positions)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"Subsample.{name} is a stride, an integer >= 1; got {value!r}")


@dataclass(frozen=True)
class Fisher:
    """The Fisher estimate.

    Attributes:
        kind: ``"mc"``: targets are sampled from the model (Martens & Grosse 2015, section 5), one backward pass a
            sample. ``"exact"``: a square root of the likelihood's output Fisher is propagated, one backward pass a
            column (classes, outputs). ``"empirical"``: the true targets, which is *not* a Fisher away from the optimum
            (Kunstner et al. 2019). ``"forward_only"``: the identity replaces the gradients (FOOF, Benzing 2022).
        samples: Samples for each term with ``"mc"``.
        sharing: ``"expand"`` or ``"reduce"`` for weights used at several positions (Eschenhagen et al. 2023): expand
            when every position has its own loss term, reduce when positions are pooled into one.
        subsample: Use a part of the batch.
        seed: Seed of the generator that draws samples and signs. The global generators are never touched.

    Raises:
        ConfigError: A value is not legal.
    """

    kind: str = "mc"
    samples: int = 1
    sharing: str = "expand"
    subsample: Subsample = field(default_factory=Subsample)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("fisher", str(self.kind), KINDS)
        if self.sharing not in SHARING:
            raise unknown_name("sharing", str(self.sharing), SHARING)
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ConfigError(f"samples must be an integer >= 1, got {self.samples!r}")
        if self.samples > 1 and self.kind != "mc":
            raise ConfigError(f"samples={self.samples} needs fisher kind 'mc', got {self.kind!r}")
        if isinstance(self.subsample, Mapping):
            object.__setattr__(self, "subsample", Subsample(**self.subsample))

    @classmethod
    def of(cls, spec: Fisher | str | Mapping[str, Any]) -> Fisher:
        """A `Fisher` from itself, a kind such as ``"mc"``, or a mapping of its fields."""
        if isinstance(spec, Fisher):
            return spec
        if isinstance(spec, str):
            return cls(kind=spec)
        if isinstance(spec, Mapping):
            fields = dict(spec)
            if "name" in fields:
                fields["kind"] = fields.pop("name")
            for name in fields:
                if name not in cls.__dataclass_fields__:
                    raise unknown_name("option of fisher:", str(name), cls.__dataclass_fields__)
            return cls(**fields)
        raise ConfigError(f"fisher must be one of {', '.join(KINDS)}, a Fisher object or a mapping of its fields; got {spec!r}")

    def columns(self, likelihood: Likelihood, targets: Any, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
        """Gradients at the likelihood's outputs, one tuple for each Fisher column; their outer products sum to the output Fisher of a term.

        Columns of the exact and the empirical Fisher carry a random sign for each term, so that sums over terms have
        independent, zero-mean summands. Columns of a weighted likelihood carry ``sqrt(w_t)``, so that outer products carry ``w_t``.

        Raises:
            ConfigError: Targets are missing for ``"empirical"``, or given for another kind.
        """
        if (targets is not None) != (self.kind == "empirical"):
            verb = "needs the targets: observe(likelihood, targets)" if targets is None else "takes no targets: observe(likelihood)"
            raise ConfigError(f"fisher={self.kind!r} {verb}")
        return [_weighted(column, likelihood) for column in self._columns(likelihood, targets, generator)]

    def _columns(self, likelihood: Likelihood, targets: Any, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
        if self.kind == "mc":
            scale = 1.0 / math.sqrt(self.samples)
            drawn = [likelihood.sampled_score(generator) for _ in range(self.samples)]
            return drawn if self.samples == 1 else [tuple(v * scale for v in column) for column in drawn]
        if self.kind == "empirical":
            return [_signed(likelihood.score(targets), likelihood, generator)]
        if self.kind == "exact":
            return [_signed(column, likelihood, generator) for column in likelihood.fisher_columns()]
        return []


def _signed(column: tuple[Tensor, ...], likelihood: Likelihood, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Multiply the column by one random sign for each likelihood term (the leading dimensions of every output count terms)."""
    terms = likelihood.num_terms
    signs = torch.randint(0, 2, (terms, 1), generator=generator, device=column[0].device).mul_(2).sub_(1)
    return tuple((v.reshape(terms, -1) * signs.to(v.dtype)).reshape(v.shape) for v in column)


def _weighted(column: tuple[Tensor, ...], likelihood: Likelihood) -> tuple[Tensor, ...]:
    """Multiply each term of the column by the root of its weight."""
    if likelihood.weights is None:
        return column
    root = likelihood.weights.sqrt().reshape(likelihood.num_terms, 1)
    return tuple((v.reshape(likelihood.num_terms, -1) * root.to(v.dtype)).reshape(v.shape) for v in column)
