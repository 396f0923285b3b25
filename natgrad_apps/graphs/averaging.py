r"""A running average of the weights, which is what is evaluated, chosen and reported.

With few labels, dropout moves the weights around the minimum of the regularised loss; their average over the last steps lies nearer to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SHARPNESS = 8.0


class WeightAverage:
    r"""``a_t = a_{t-1} + r_t (w_t - a_{t-1})``, ``r_t = max(1 - decay, 9 / (t + 8))``.

    The second part is polynomial-decay averaging with the exponent 8: while it is the larger, the average spans about the last ninth of all
    steps, so it does not lag behind a fast start.
    Reference: Shamir & Zhang, Stochastic gradient descent for non-smooth optimization, ICML 2013, section 4 (its eta is 8 here).

    Args:
        model: Whose trainable parameters are averaged.
        decay: Weight of the old value in the end, in [0, 1); 0 averages nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self.decay == 0:
            return
        self.steps += 1
        rate = max(1 - self.decay, (SHARPNESS + 1) / (self.steps + SHARPNESS))
        if not self._average:
            self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            self._average[name].lerp_(p, rate)

    def drop(self) -> None:
        """Forget the average: `shown` then does nothing."""
        self._average, self.steps = {}, 0

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The model holds the average inside, and its own weights again outside; nothing happens before the first step."""
        if not self._average:
            yield
            return
        kept = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._hold(self._average)
            yield
        finally:
            self._hold(kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {"steps": self.steps, "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, on the device of the model."""
        self.steps = state["steps"]
        self._average = {name: value.to(self._parameters[name].device) for name, value in state["average"].items()}

    @torch.no_grad()
    def _hold(self, values: dict[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.copy_(values[name])
