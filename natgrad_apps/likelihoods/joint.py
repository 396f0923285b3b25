"""Independent heads over the same terms, such as policy and value of an actor-critic."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from natgrad_apps.errors import ConfigError, ShapeError
from natgrad_apps.likelihoods.base import Likelihood, Targets, check_comparable, check_delta


class Joint(Likelihood):
    """Product of independent likelihoods: log-probabilities, Fishers and KL divergences add.

    Shapes: every head has the same ``[*terms]``; targets are a tuple with one entry for each head. A `Joint` given as a head is flattened.

    Args:
        *likelihoods: The heads.

    Raises:
        ConfigError: No head, or a head with weights.
        TypeError: A head that is no likelihood.
        ShapeError: Heads with different terms.
    """

    heads: tuple[Likelihood, ...]

    def __init__(self, *likelihoods: Likelihood) -> None:
        heads: list[Likelihood] = []
        for head in likelihoods:
            if not isinstance(head, Likelihood):
                raise TypeError(
                    f"Joint accepts likelihoods, got {type(head).__name__}; wrap it, as in Joint(Categorical(logits), Gaussian(values))"
                )
            heads.extend(head.heads if isinstance(head, Joint) else (head,))
        if not heads:
            raise ConfigError("Joint needs at least one likelihood, got none")
        if any(head.weights is not None for head in heads):
            raise ConfigError("Joint: a head has weights of its own, but terms are weighted together; use Joint(...).weighted(weights)")
        if len({head.term_shape for head in heads}) > 1:
            given = ", ".join(f"{type(head).__name__} {tuple(head.term_shape)}" for head in heads)
            raise ShapeError(f"Joint needs heads over the same terms, got {given}; reshape the outputs so that the term dimensions agree")
        self.heads = tuple(heads)
        self.outputs = tuple(output for head in heads for output in head.outputs)
        self.term_shape = heads[0].term_shape

    @property
    def num_columns(self) -> int:
        """The sum over the heads."""
        return sum(head.num_columns for head in self.heads)

    def sample(self, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """One draw for each head."""
        draws = [head.sample(generator) for head in self.heads]
        assert all(isinstance(draw, Tensor) for draw in draws)
        return tuple(draw for draw in draws if isinstance(draw, Tensor))

    def log_prob(self, targets: Targets) -> Tensor:
        """Sum over the heads."""
        self._check_count(targets)
        return torch.stack([head.log_prob(t) for head, t in zip(self.heads, targets, strict=True)]).sum(0)

    def check_targets(self, targets: Targets) -> None:
        """Targets are a tuple with one legal entry for each head."""
        self._check_count(targets)
        for head, t in zip(self.heads, targets, strict=True):
            head.check_targets(t)

    def _check_count(self, targets: object) -> None:
        if not isinstance(targets, (tuple, list)):
            raise TypeError(
                f"Joint: targets must be a tuple with one entry for each of the {len(self.heads)} heads, got {type(targets).__name__}"
            )
        if len(targets) != len(self.heads):
            raise ShapeError(f"Joint: targets must have one entry for each of the {len(self.heads)} heads, got {len(targets)}")

    def unchecked_score(self, targets: Targets) -> tuple[Tensor, ...]:
        """Scores of the heads, one after the other."""
        return tuple(score for head, t in zip(self.heads, targets, strict=True) for score in head.unchecked_score(t))

    def fisher_columns(self) -> Iterator[tuple[Tensor, ...]]:
        """Columns of each head, zero in the outputs of the others."""
        for which, head in enumerate(self.heads):
            for column in head.fisher_columns():
                parts = [
                    column if i == which else tuple(torch.zeros_like(o).detach() for o in other.outputs)
                    for i, other in enumerate(self.heads)
                ]
                yield tuple(part for head_parts in parts for part in head_parts)

    def known_fisher(self) -> list[tuple[Tensor, Tensor]]:
        """Entries of all heads; the Fishers of a parameter that several heads share add."""
        total: dict[int, tuple[Tensor, Tensor]] = {}
        for head in self.heads:
            for parameter, diagonal in head.known_fisher():
                before = total.get(id(parameter))
                total[id(parameter)] = (parameter, diagonal if before is None else before[1] + diagonal)
        return list(total.values())

    def kl(self, other: Likelihood) -> Tensor:
        """Sum over the heads."""
        check_comparable(self, other)
        assert isinstance(other, Joint)
        if len(self.heads) != len(other.heads):
            raise ShapeError(f"the KL divergence needs equally many heads, got {len(self.heads)} and {len(other.heads)}")
        return torch.stack([mine.kl(theirs) for mine, theirs in zip(self.heads, other.heads, strict=True)]).sum(0)

    def output_quadratic(self, delta: tuple[Tensor, ...]) -> Tensor:
        """Sum over the heads."""
        changes = iter(check_delta(self, delta))
        return torch.stack([head.output_quadratic(tuple(next(changes) for _ in head.outputs)) for head in self.heads]).sum(0)

    def detach(self) -> Joint:
        """The same heads over detached copies."""
        return Joint(*(head.detach() for head in self.heads))
