"""The contract of a likelihood, and the checks that all of them share.

A likelihood has `num_terms` independent terms; its outputs have the shape ``[*terms]`` or ``[*terms, event]``. The Fisher information
of one term with respect to the outputs is small and known in closed form; the rest of the package only pulls it back through the network.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from natgrad_apps.errors import CaptureError, ConfigError, ShapeError

Targets: TypeAlias = Tensor | tuple[Tensor, ...]
"""What a likelihood is evaluated at: a tensor, or one tensor for each head of a `Joint`."""


class Likelihood(ABC):
    """A distribution over targets, given model outputs.

    Attributes:
        outputs: The graph tensors that gradients flow into; each ``[*terms]`` or ``[*terms, event]``. A tensor of lower shape (such as one
            scale for all terms) is here in its expanded form, so that every output has the term dimensions.
        term_shape: The shape ``[*terms]``.
        weights: Weight of each term in the Fisher, ``[*terms]``, or None if all count alike; see `weighted`.
        support: Flat indices of the terms with a weight, where they are known without asking the device.
        groups: Term of each row of the layers before a pooling, or None; see `pooled`.
    """

    outputs: tuple[Tensor, ...]
    term_shape: torch.Size
    weights: Tensor | None = None
    support: Tensor | None = None
    groups: Tensor | None = None

    @property
    def num_terms(self) -> int:
        """Number ``M`` of log-likelihood terms."""
        return math.prod(self.term_shape)

    @property
    def total_weight(self) -> float | Tensor:
        """What the Fisher is divided by: the sum of the weights (a 0-d tensor), or `num_terms`."""
        return self.num_terms if self.weights is None else self.weights.sum()

    def weighted(self, weights: Tensor, support: Tensor | None = None) -> Self:
        """The same likelihood whose Fisher is that of a weighted mean, ``sum_t w_t F_t / sum_t w_t``.

        It belongs to the loss ``-sum_t w_t log p_t / sum_t w_t``; terms of weight zero carry no loss. Log-probabilities, divergences and
        scores of single terms stay as they are. Layers with as many units as there are terms average their inputs with these weights too.

        Args:
            weights: Not negative, at least one positive; of the shape ``[*terms]``.
            support: Flat indices of the terms whose weight may differ from zero. They spare work; on the CPU they are found if not given.

        Raises:
            TypeError: The weights are no floating tensor.
            ShapeError: The weights do not have the shape of the terms.
            ConfigError: A weight on the CPU is negative or not finite, or all are zero.
        """
        owner = type(self).__name__
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            raise TypeError(f"{owner}: weights must be a floating tensor, got {getattr(weights, 'dtype', type(weights).__name__)}")
        if weights.shape != self.term_shape:
            raise ShapeError(f"{owner}: weights must have the shape of the terms, {tuple(self.term_shape)}, got {tuple(weights.shape)}")
        weights = weights.detach()
        check_on_cpu(~(weights >= 0) | weights.isinf(), f"{owner}: weights must be finite and >= 0")
        check_on_cpu((weights == 0).all(), f"{owner}: every weight is zero, so no term is left; give one of them a positive weight")
        if support is None and weights.device.type == "cpu":
            support = weights.flatten().nonzero().squeeze(1)
        result = copy.copy(self)
        result.weights, result.support = weights, support
        return result

    def pooled(self, groups: Tensor) -> Self:
        """The same likelihood of outputs that were pooled from rows, as those of a graph are from its nodes.

        Under ``sharing="reduce"`` the rows of a term are its shared positions, though terms differ in how many they have: every layer with
        one unit for each entry of `groups` averages its inputs and sums its output gradients over the rows of a term.

        Args:
            groups: ``[rows]`` integers, the flat index of the term that each row belongs to; every term has at least one.

        Raises:
            TypeError: They are no integers.
            ConfigError: On the CPU, a term has no row, or an index is out of range.
        """
        owner = type(self).__name__
        if not isinstance(groups, Tensor) or groups.is_floating_point() or groups.ndim != 1:
            raise TypeError(f"{owner}: groups must be a vector of integers, one for each row")
        out_of_range = (groups < 0) | (groups >= self.num_terms)
        check_on_cpu(out_of_range, f"{owner}: groups must be indices of the {self.num_terms} terms, from 0")
        if groups.device.type == "cpu":
            check_on_cpu(torch.bincount(groups, minlength=self.num_terms) == 0, f"{owner}: every term needs at least one row in groups")
        result = copy.copy(self)
        result.groups = groups
        return result

    @property
    @abstractmethod
    def num_columns(self) -> int:
        """Number of columns that `fisher_columns` yields."""

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Targets:
        """Draw targets from the likelihood itself, without a host synchronization.

        Args:
            generator: The only source of randomness if given (on the device of the outputs); else the global generator.
        """

    @abstractmethod
    def log_prob(self, targets: Targets) -> Tensor:
        """Log-probability of each term, ``[*terms]``, in nats and in float32 or wider; differentiable.

        Raises:
            ShapeError: The targets do not have the shape that the outputs ask for.
            TypeError: The targets have the wrong type or dtype.
            ConfigError: A target on the CPU is outside the legal range (not checked on other devices: that would synchronize).
        """

    @abstractmethod
    def check_targets(self, targets: Targets) -> None:
        """Raise the errors that `log_prob` lists, or return."""

    @abstractmethod
    def unchecked_score(self, targets: Targets) -> tuple[Tensor, ...]:
        """`score` without the checks, for targets that are known to be legal."""

    def score(self, targets: Targets) -> tuple[Tensor, ...]:
        """Gradient of ``log_prob(targets).sum()`` with respect to each output, analytic, detached, in the output's shape and dtype.

        Illegal targets raise as in `log_prob`.
        """
        self.check_targets(targets)
        return self.unchecked_score(targets)

    def sampled_score(self, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The score at a sample; its covariance over samples is the Fisher."""
        return self.unchecked_score(self.sample(generator))

    @abstractmethod
    def fisher_columns(self) -> Iterator[tuple[Tensor, ...]]:
        """Columns ``v_c``, one tensor for each output, with ``sum_c v_c v_c^T`` the Fisher of one term with respect to its outputs."""

    def known_fisher(self) -> list[tuple[Tensor, Tensor]]:
        """Leaf parameters whose Fisher diagonal (mean over terms) is known in closed form, each with that diagonal in its own shape."""
        return []

    @abstractmethod
    def kl(self, other: Likelihood) -> Tensor:
        """Exact ``KL(self || other)`` of each term, ``[*terms]``, in nats; detached.

        Raises:
            TypeError: The other likelihood is of another family.
            ShapeError: The other likelihood has other shapes.
        """

    @abstractmethod
    def output_quadratic(self, delta: tuple[Tensor, ...]) -> Tensor:
        """``delta^T F delta`` of each term, ``[*terms]``, for a change of the outputs (one tensor for each output).

        Raises:
            ShapeError: The change does not have the shapes of the outputs.
        """

    @abstractmethod
    def detach(self) -> Likelihood:
        """The same likelihood over detached copies, to compare with after a step."""

    def check_differentiable(self) -> None:
        """Raise unless gradients can flow into at least one output.

        Raises:
            CaptureError: No output is attached to a graph.
        """
        if not any(output.requires_grad for output in self.outputs):
            raise CaptureError(
                f"{type(self).__name__} was built from outputs without gradient history (shapes {[tuple(o.shape) for o in self.outputs]}); "
                "compute the outputs with gradients enabled (not under torch.no_grad or torch.inference_mode) and do not detach them"
            )

    def __repr__(self) -> str:
        """Family, terms and output shapes."""
        return f"{type(self).__name__}(terms={tuple(self.term_shape)}, outputs={[tuple(o.shape) for o in self.outputs]})"


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for probabilities; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_output(owner: str, name: str, x: object, min_ndim: int) -> Tensor:
    """Return `x` if it is a floating tensor with at least `min_ndim` dimensions and at least one element.

    Raises:
        TypeError: Not a tensor, or not a floating one.
        ShapeError: Too few dimensions, or empty.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{owner}: {name} must be a floating tensor, got dtype {x.dtype}; pass the model's output, not targets or class indices"
        )
    if x.ndim < min_ndim:
        legal = "[terms] or [*terms, event]" if min_ndim <= 1 else "[*terms, classes]"
        raise ShapeError(f"{owner}: {name} must have the shape {legal}, got {tuple(x.shape)}; add the batch dimension with unsqueeze(0)")
    if x.numel() == 0:
        raise ShapeError(f"{owner}: {name} is empty, shape {tuple(x.shape)}; at least one term is needed")
    return x


def check_tensor_targets(owner: str, targets: object, shape: torch.Size, needs: str) -> Tensor:
    """Return `targets` if it is a tensor of the shape needed.

    Raises:
        TypeError: Not a tensor.
        ShapeError: Another shape.
    """
    if not isinstance(targets, Tensor):
        raise TypeError(f"{owner}: targets must be a tensor of {needs}, got {type(targets).__name__}")
    if targets.shape != shape:
        raise ShapeError(f"{owner}: targets must have the shape {tuple(shape)} ({needs}), got {tuple(targets.shape)}")
    return targets


def has_event(x: Tensor) -> bool:
    """Whether the last dimension of an output is one event: it is, unless it is the only dimension."""
    return x.ndim > 1


def check_on_cpu(condition: Tensor, message: str) -> None:
    """Raise `ConfigError` if any element of a CPU `condition` is true; other devices are not read, because reading synchronizes."""
    if condition.device.type == "cpu" and bool(condition.any()):
        raise ConfigError(message)


def check_delta(likelihood: Likelihood, delta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the change of the outputs, in float32 or wider.

    Raises:
        ShapeError: The number of tensors or a shape differs from the outputs.
    """
    given, legal = [tuple(d.shape) for d in delta], [tuple(o.shape) for o in likelihood.outputs]
    if given != legal:
        raise ShapeError(f"{type(likelihood).__name__}: the change of the outputs must have the shapes {legal}, got {given}")
    return tuple(at_least_float32(d.detach()) for d in delta)


def check_comparable(first: Likelihood, second: Likelihood) -> None:
    """Raise unless a KL divergence between the two is defined here.

    Raises:
        TypeError: Different families.
        ShapeError: Different shapes.
    """
    if type(first) is not type(second):
        raise TypeError(f"the KL divergence needs two likelihoods of one family, got {type(first).__name__} and {type(second).__name__}")
    shapes = [[tuple(first.outputs[0].shape), first.term_shape], [tuple(second.outputs[0].shape), second.term_shape]]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"the KL divergence needs equal shapes, got {shapes[0][0]} and {shapes[1][0]}")


def discrete_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Contribution of each outcome to ``KL(p || q)``; every element is non-negative, also after rounding.

    ``p (log p - log q)`` cancels badly when p and q are near. With ``r = log q - log p`` and ``sum p = sum q = 1`` the sum equals that of
    ``q - p - p r = p (e^r - 1 - r)``, whose elements are not negative. Impossible outcomes (``log p = -inf``) contribute ``q``.
    """
    p, q = log_p.exp(), log_q.exp()
    r = log_q - log_p
    near = p * (torch.expm1(r) - r)
    far = q - p - p * r
    return torch.where(p > 0, torch.where(r.abs() < 1, near, far), q)
