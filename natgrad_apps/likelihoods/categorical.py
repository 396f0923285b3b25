"""Categorical likelihood: one of C classes for each term."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.distributions as td
from torch import Tensor

from natgrad_apps.errors import ShapeError
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
)


class Categorical(Likelihood):
    """``p(y = c) = softmax(logits)_c``; the Fisher of one term is ``diag(p) - p p^T``.

    Shapes: logits ``[*terms, C]``; targets ``[*terms]``, integer class indices. A logit of ``-inf`` excludes its class.

    Args:
        logits: Unnormalized log-probabilities, or a ``torch.distributions.Categorical`` or ``OneHotCategorical``.

    Raises:
        TypeError: Another distribution, not a tensor, or not floating.
        ShapeError: Fewer than two dimensions or fewer than two classes.
    """

    def __init__(self, logits: Tensor | td.Distribution) -> None:
        if isinstance(logits, (td.Categorical, td.OneHotCategorical)):
            logits = logits.logits
        elif isinstance(logits, td.Distribution):
            raise TypeError(
                f"Categorical accepts logits, torch.distributions.Categorical or OneHotCategorical, got {type(logits).__name__}; "
                "for several independent categorical heads use Joint(Categorical(...), Categorical(...))"
            )
        logits = check_output("Categorical", "logits", logits, min_ndim=2)
        if logits.shape[-1] <= 1:
            raise ShapeError(
                f"Categorical: logits must have at least 2 classes (last dimension), got {tuple(logits.shape)}; for one logit use Bernoulli"
            )
        self.outputs = (logits,)
        self.term_shape = logits.shape[:-1]

    @cached_property
    def _log_p(self) -> Tensor:
        return torch.log_softmax(at_least_float32(self.outputs[0].detach()), -1)

    @property
    def num_columns(self) -> int:
        """The number of classes."""
        return self.outputs[0].shape[-1]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Class indices ``[*terms]``, by an exponential race: ``torch.multinomial`` would synchronize."""
        p = self._log_p.exp()
        race = torch.empty_like(p).exponential_(generator=generator)
        return (p / race.clamp_min_(torch.finfo(p.dtype).tiny)).argmax(-1)

    def log_prob(self, targets: Targets) -> Tensor:
        """Log-probability of each class index."""
        self.check_targets(targets)
        assert isinstance(targets, Tensor)
        log_p = torch.log_softmax(at_least_float32(self.outputs[0]), -1)
        return log_p.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)

    def check_targets(self, targets: Targets) -> None:
        """Targets are integer class indices ``[*terms]`` in ``[0, C)``."""
        checked = check_tensor_targets(
            "Categorical", targets, self.term_shape, "one class index for each term; for one-hot targets pass targets.argmax(-1)"
        )
        if checked.is_floating_point() or checked.is_complex() or checked.dtype == torch.bool:
            raise TypeError(f"Categorical: targets must be integer class indices, got dtype {checked.dtype}; convert with .long()")
        if checked.device.type == "cpu":
            classes = self.num_columns
            check_on_cpu(
                (checked < 0) | (checked >= classes), f"Categorical: targets must be class indices in [0, {classes}), got values outside"
            )

    def unchecked_score(self, targets: Targets) -> tuple[Tensor, ...]:
        """``one_hot(y) - p``."""
        assert isinstance(targets, Tensor)
        score = self._log_p.exp().neg_()
        index = targets.long().unsqueeze(-1)
        score.scatter_add_(-1, index, torch.ones_like(index, dtype=score.dtype))
        return (score.to(self.outputs[0].dtype),)

    def fisher_columns(self) -> Iterator[tuple[Tensor, ...]]:
        """``sqrt(p_c) (e_c - p)`` for each class."""
        p = self._log_p.exp()
        for c in range(self.num_columns):
            root = p[..., c].sqrt()
            column = p * -root.unsqueeze(-1)
            column[..., c] += root
            yield (column.to(self.outputs[0].dtype),)

    def kl(self, other: Likelihood) -> Tensor:
        """``sum_c p_c log(p_c / q_c)``."""
        check_comparable(self, other)
        assert isinstance(other, Categorical)
        return discrete_kl(self._log_p, other._log_p).sum(-1)

    def output_quadratic(self, delta: tuple[Tensor, ...]) -> Tensor:
        """The variance of the change under p, which is ``delta^T (diag(p) - p p^T) delta``; logits of impossible classes do not count."""
        (d,) = check_delta(self, delta)
        p = self._log_p.exp()
        d = torch.where(p > 0, d, torch.zeros_like(d))  # the change of a logit of -inf is no number
        centered = d - (p * d).sum(-1, keepdim=True)
        return (p * centered.square()).sum(-1)

    def detach(self) -> Categorical:
        """The same likelihood over a detached copy of the logits."""
        return Categorical(self.outputs[0].detach().clone())
