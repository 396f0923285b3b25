"""A KL divergence whose weight rises at the beginning of a training."""

from __future__ import annotations

from dataclasses import dataclass

from natgrad_apps.errors import ConfigError, check_positive


@dataclass(frozen=True)
class WarmUp:
    r"""Temperature ``lambda_t = end (start / end)^(1 - t / steps)`` of step ``t < steps``, then ``end``.

    The objective is that of the constant temperature `end` in the end; the way there decides which of its optima is found. In the first
    steps a hidden unit costs more KL divergence than it explains. A unit whose outgoing weights have shrunk to the noise of the posterior
    gets no gradient that could bring it back, so a fit that pays the whole KL from the beginning keeps few units. docs/bayes.md has what it
    is worth.

    The idea is that of Bowman et al., Generating sentences from a continuous space, CoNLL 2016, arXiv 1511.06349, and of Sonderby et al.,
    Ladder variational autoencoders, NeurIPS 2016, arXiv 1602.02282, whose weights rise linearly from 0. Departure: geometric from a
    positive `start`, because at a temperature of 0 the covariance vanishes.

    Attributes:
        start: First temperature.
        steps: Number of steps until `end`; 0 for a constant temperature.
        end: Last temperature; 1 is Bayes.

    Raises:
        ConfigError: A value is not legal.
    """

    start: float = 0.1
    steps: int = 0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.end)
        check_positive("first temperature", self.start)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"steps of the warm-up must be an integer >= 0, got {self.steps!r}")

    def at(self, step: int) -> float:
        """Temperature of a step.

        Args:
            step: Number of steps taken before it.
        """
        if step >= self.steps:
            return self.end
        return float(self.end * (self.start / self.end) ** (1 - step / self.steps))
