"""Frozen records that flow through the system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockSpec:
    """Sizes of one block of the curvature: the weight matrix of a layer, or a bare parameter.

    Attributes:
        name: Name of the block, unique in its model: a module path, or a parameter name for the fallback.
        kind: ``"linear"``, ``"conv"``, ... or ``"parameter"``.
        lead: ``()``, or ``(groups,)`` for a grouped layer.
        d_out: Rows of the matrix ``W: [*lead, d_out, d_in]``.
        d_in: Columns of the matrix, the bias column included.
        dtype: Data type of the statistics.
        device: Where the statistics live.
    """

    name: str
    kind: str
    lead: tuple[int, ...]
    d_out: int
    d_in: int
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight matrix, ``[*lead, d_out, d_in]``."""
        return (*self.lead, self.d_out, self.d_in)


@dataclass
class State:
    """What a curvature knows of one block.

    Attributes:
        spec: The block.
        moments: Running averages, by name. They are what the curvature *is*.
        cache: Results of the last refresh (inverses, eigenvectors), by name. Checkpointed too, so that a resumed run is bit-equal.
        count: Number of accumulated batches, a 0-d tensor on the device; rejected batches do not count.
    """

    spec: BlockSpec
    moments: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, Tensor] = field(default_factory=dict)
    count: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(frozen=True)
class DampingValue:
    """The damping in force at a refresh.

    Attributes:
        value: ``lambda``, a 0-d tensor; the damped curvature is ``F + lambda I`` or its factored approximation.
        factored: Whether a Kronecker structure may split ``lambda`` over its factors (Martens & Grosse 2015, section 6.3).
    """

    value: Tensor
    factored: bool


@dataclass(frozen=True)
class Bound:
    """What a step rule made of one objective; 0-d tensors on the device.

    Attributes:
        predicted_kl: Half the quadratic form of the objective's own step, in nats.
        scale: Factor applied by its step rule, 1 when the rule did not act, 0 when the step was skipped.
    """

    predicted_kl: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Info:
    """What one optimizer step did. Every entry is a tensor on the device; reading one as a number is the only synchronization.

    Attributes:
        predicted_kl: Half the quadratic form of the step, in nats. `KLTrustRegion`: exactly ``1/2 d^T F d`` for the
            undamped ``F`` and the step ``d`` that was taken, momentum included. `Plain` and `KLClip`: ``1/2 d^T
            g``-type value of the step without its momentum in the *damped* metric, which needs no further product and
            bounds the undamped value from above. With several objectives: ``1/2 d^T F d`` of the whole step.
        scale: Factor applied by the step rule, 1 when the rule did not act, 0 when the step was skipped; the smallest over the objectives.
        damping: ``lambda``.
        skipped: 1 if the step was skipped because a gradient or statistic was not finite, else 0.
        skipped_steps: Number of skipped steps so far.
        gradient_norms: Euclidean norm of each block's gradient.
        update_norms: Euclidean norm of each block's step.
        quadratic: ``d^T F d`` of each block; empty for step rules that do not compute it.
        objectives: What happened to each objective; its name is ``"loss"`` when there is one only.
    """

    predicted_kl: Tensor
    scale: Tensor
    damping: Tensor
    skipped: Tensor
    skipped_steps: Tensor
    gradient_norms: Mapping[str, Tensor]
    update_norms: Mapping[str, Tensor]
    quadratic: Mapping[str, Tensor]
    objectives: Mapping[str, Bound]
