"""Vadam and Vprop: mean-field variational inference inside Adam and RMSprop, from the square of the minibatch gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import DiagonalNormal, Normal
from natgrad_apps.bayes.methods.base import Method, Problem, check_choice
from natgrad_apps.bayes.methods.flat import FlatLearner


@dataclass(frozen=True)
class Vadam(Method):
    r"""Variational Adam.

    ::

        w = mu + e / sqrt((N/lambda) (s + gamma)),   gamma = lambda p / N,   g = gradient of the mean loss of the batch at w
        m <- b1 m + (1 - b1) (g + gamma mu)
        s <- b2 s + (1 - b2) c g^2
        mu <- mu - lr  m / (1 - b1^t)  /  (sqrt((s - b2^t s0) / (1 - b2^t) / c) + gamma)

    With ``g_i`` the gradients of the ``M`` terms of a batch, ``E g^2 = Var(g_i) / M + (E g_i)^2``: the square of a batch mean is too small
    for the Fisher by the batch size, so with the paper's ``c = 1`` (``squares="batch"``) variances are too large (section 3.4 there).
    ``squares="example"`` takes ``c = M``: at an optimum, where the mean gradient vanishes, ``E M g^2 = E g_i^2``. The step divides by ``c``
    again, so it is the same.

    Departures from the paper: ``c``; the correction of ``s`` takes out its first value ``s0``, so that ``s0`` matters for the posterior
    only and the step without noise and prior is exactly Adam's (with ``gamma`` for its epsilon). ``g^2`` is averaged over the samples.

    Cost: Adam's plus a draw of ``n`` numbers and a dozen operations on vectors; memory ``8 n``.
    Reference: Khan, Nielsen, Tangkaratt, Lin, Gal & Srivastava, Fast and scalable Bayesian deep learning by weight-perturbation in Adam,
    ICML 2018, arXiv 1806.04854, algorithm 2.

    Attributes:
        lr: Learning rate.
        betas: ``b1`` and ``b2``, in [0, 1).
        initial_curvature: ``s0``.
        squares: ``"example"`` or ``"batch"``.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    initial_curvature: float = 1.0
    squares: str = "example"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("squares", self.squares, ("example", "batch"))

    def start(self, problem: Problem) -> SquaresLearner:
        """See `Method`."""
        return SquaresLearner(problem, self, momentum=self.betas[0], decay=self.betas[1], corrected=True)


@dataclass(frozen=True)
class Vprop(Method):
    r"""Variational RMSprop.

    As `Vadam` without momentum and without corrections: ``s <- b s + (1 - b) c g^2``, ``mu <- mu - lr (g + gamma mu) / (sqrt(s / c) +
    gamma)``.

    Reference: Khan, Liu, Tangkaratt & Gal, Vprop: Variational inference using RMSprop, 2017, arXiv 1712.01038.

    Attributes:
        lr: Learning rate.
        decay: ``b`` in [0, 1).
        initial_curvature: First value of ``s``.
        squares: ``"example"`` or ``"batch"``, see `Vadam`.

    Raises:
        ConfigError: A value is not legal.
    """

    lr: float = 1e-3
    decay: float = 0.99
    initial_curvature: float = 1.0
    squares: str = "example"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("squares", self.squares, ("example", "batch"))

    def start(self, problem: Problem) -> SquaresLearner:
        """See `Method`."""
        return SquaresLearner(problem, self, momentum=0.0, decay=self.decay, corrected=False)


class SquaresLearner(FlatLearner):
    """Running averages of the minibatch gradient and of its square.

    Args:
        problem: What is to be solved.
        method: First learning rate and curvature.
        momentum: ``b1``.
        decay: ``b2``.
        corrected: Whether the first values are taken out of the averages in the step.
    """

    def __init__(self, problem: Problem, method: Vadam | Vprop, *, momentum: float, decay: float, corrected: bool) -> None:
        super().__init__(problem, method.lr, momentum)
        self._first, self._decay, self._corrected = method.initial_curvature, decay, corrected
        self._by_example = method.squares == "example"
        self.squares = self.flat.full(self._first)
        self._samples = 0
        self._root = self.flat.full(0.0)
        self.begin()

    def normal(self) -> Normal:
        """Precision ``(s + gamma_in) N / lambda``."""
        return DiagonalNormal(torch.add(self.squares, self.intrinsic()).div_(self.problem.scale))

    def absorb(self, gradient: Tensor) -> None:
        """The gradient; from the second sample on, the squares of each."""
        before = self._gradient
        self._samples = 1 if before is None else self._samples + 1
        if before is not None:
            if self._samples == 2:
                self.collect(before.square())
            self.collect(gradient.square())
        super().absorb(gradient)

    def advance(self, gradient: Tensor, moment: Tensor | None) -> None:
        """See `Vadam`; `gradient` is the sum of ``g_k / K`` over the samples, `moment` that of its squares."""
        scale = self.terms if self._by_example else 1
        share, shrunk = (1 - self._decay) * self._samples * scale, self._decay**self.steps if self._corrected else 0.0
        self.squares.mul_(self._decay)
        if moment is None:
            self.squares.addcmul_(gradient, gradient, value=share)
        else:
            self.squares.add_(moment, alpha=share)
        average = self.average(self.pulled(gradient))
        torch.sub(self.squares, shrunk * self._first, out=self._root)
        torch.add(self.intrinsic(), self._root.clamp_min_(0).sqrt_(), alpha=((1 - shrunk) * scale) ** -0.5, out=self._root)
        self.move(average, self._root, 1 / self.momentum.correction)

    def averages(self) -> dict[str, Tensor]:
        """``s``."""
        return {"squares": self.squares}
