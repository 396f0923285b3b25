"""Feeding models to the package, for tests of the curvature itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from natgrad_apps.likelihoods import Likelihood
from natgrad_apps.preconditioner import Preconditioner

MakeLikelihood = Callable[[Tensor], Likelihood]


def feed(preconditioner: Preconditioner, model: nn.Module, x: Any, likelihood: MakeLikelihood, targets: Any = None) -> Preconditioner:
    """Observe one batch and update."""
    with preconditioner.capture():
        preconditioner.observe(likelihood(model(x)), targets)
    preconditioner.update()
    return preconditioner


def factors(preconditioner: Preconditioner, name: str) -> tuple[Tensor, Tensor]:
    """``A`` and ``G`` of a K-FAC block with whole factors."""
    moments = preconditioner.blocks[name].state.moments
    return moments["A0"], moments["G0"]


def dense(preconditioner: Preconditioner, name: str) -> Tensor:
    """The damped block as one matrix."""
    block = preconditioner.blocks[name]
    return block.curvature.to_dense(block.state)
