"""Bernoulli likelihood: independent binary outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.distributions as td
from torch import Tensor
from torch.nn.functional import logsigmoid

from natgrad_apps.likelihoods.base import (
    Likelihood,
    Targets,
    at_least_float32,
    check_comparable,
    check_delta,
    check_on_cpu,
    check_output,
    check_tensor_targets,
    discrete_kl,
    has_event,
)
from natgrad_apps.likelihoods.gaussian import base_distribution


class Bernoulli(Likelihood):
    """``p(y = 1) = sigmoid(logit)``, independent over the event; the Fisher of one outcome is ``p (1 - p)``.

    Shapes: logits ``[terms]``, or ``[*terms, event]`` with the last dimension one event; targets of the same shape, 0 or 1, any real dtype.

    Args:
        logits: Log-odds, or a ``torch.distributions.Bernoulli`` or ``Independent(Bernoulli, 1)``.

    Raises:
        TypeError: Another distribution, not a tensor, or not floating.
        ShapeError: No dimension, or empty.
    """

    def __init__(self, logits: Tensor | td.Distribution) -> None:
        if isinstance(logits, td.Distribution):
            base = base_distribution("Bernoulli", logits, td.Bernoulli)
            assert isinstance(base, td.Bernoulli)
            logits = base.logits
        logits = check_output("Bernoulli", "logits", logits, min_ndim=1)
        self.outputs = (logits,)
        self._event = has_event(logits)
        self.term_shape = logits.shape[:-1] if self._event else logits.shape

    @cached_property
    def _logits(self) -> Tensor:
        return at_least_float32(self.outputs[0].detach())

    def _sum_event(self, x: Tensor) -> Tensor:
        return x.sum(-1) if self._event else x

    @property
    def num_columns(self) -> int:
        """The size of the event."""
        return self.outputs[0].shape[-1] if self._event else 1

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones in the shape of the logits, float32 or wider."""
        p = torch.sigmoid(self._logits)
        return torch.empty_like(p).uniform_(generator=generator).lt_(p)

    def log_prob(self, targets: Targets) -> Tensor:
        """Log-probability, summed over the event."""
        self.check_targets(targets)
        assert isinstance(targets, Tensor)
        logits = at_least_float32(self.outputs[0])
        return self._sum_event(logsigmoid(torch.where(targets.bool(), logits, -logits)))

    def check_targets(self, targets: Targets) -> None:
        """Targets are 0 or 1 in the shape of the logits."""
        checked = check_tensor_targets("Bernoulli", targets, self.outputs[0].shape, "one 0 or 1 for each logit")
        if checked.is_complex():
            raise TypeError(f"Bernoulli: targets must be real zeros and ones, got dtype {checked.dtype}")
        if checked.device.type == "cpu" and checked.dtype != torch.bool:
            check_on_cpu(
                (checked != 0) & (checked != 1),
                "Bernoulli: targets must be 0 or 1, got other values; round soft targets or sample from them",
            )

    def unchecked_score(self, targets: Targets) -> tuple[Tensor, ...]:
        """``y - p``."""
        assert isinstance(targets, Tensor)
        return ((targets.to(self._logits.dtype) - torch.sigmoid(self._logits)).to(self.outputs[0].dtype),)

    def fisher_columns(self) -> Iterator[tuple[Tensor, ...]]:
        """``sqrt(p (1 - p)) e_d`` for each dimension of the event."""
        # p (1 - p) = sigmoid(z) sigmoid(-z): no cancellation for large logits
        root = (torch.sigmoid(self._logits) * torch.sigmoid(-self._logits)).sqrt().to(self.outputs[0].dtype)
        if not self._event:
            yield (root,)
            return
        for d in range(self.num_columns):
            column = torch.zeros_like(root)
            column[..., d] = root[..., d]
            yield (column,)

    def kl(self, other: Likelihood) -> Tensor:
        """``p log(p/q) + (1-p) log((1-p)/(1-q))``, summed over the event."""
        check_comparable(self, other)
        assert isinstance(other, Bernoulli)
        z, w = self._logits, other._logits
        return self._sum_event(discrete_kl(logsigmoid(z), logsigmoid(w)) + discrete_kl(logsigmoid(-z), logsigmoid(-w)))

    def output_quadratic(self, delta: tuple[Tensor, ...]) -> Tensor:
        """``p (1 - p) delta^2``, summed over the event."""
        (d,) = check_delta(self, delta)
        return self._sum_event(torch.sigmoid(self._logits) * torch.sigmoid(-self._logits) * d.square())

    def detach(self) -> Bernoulli:
        """The same likelihood over a detached copy of the logits."""
        return Bernoulli(self.outputs[0].detach().clone())
