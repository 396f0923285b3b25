"""The contract of a damping rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from natgrad_apps.errors import check_positive


@dataclass(frozen=True)
class Damping:
    """How much is added to the curvature.

    Attributes:
        value: ``lambda``, or its first value for an adaptive rule.
        factored: Whether a Kronecker structure may split ``lambda`` over its factors.
        adaptive: Whether the rule needs the loss before and after a step.
    """

    value: float = 1e-3

    factored: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive("damping", self.value)

    def due(self, step: int) -> bool:
        """Whether `adapt` should be called after this step."""
        del step
        return False

    def adapt(self, current: Tensor, ratio: Tensor) -> Tensor:
        """The next ``lambda``, from the ratio of the actual to the predicted decrease of the loss; all 0-d tensors."""
        del ratio
        return current
