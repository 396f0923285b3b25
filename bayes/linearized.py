r"""The model linearized at the posterior mean: predictions in closed form, without weight samples.

With ``q = N(mu, Sigma)`` and the Jacobian ``J(x) = d f(x, w) / d w`` at ``mu``, ``[C, P]``, the function and its distribution are::

    f(x, w) ~ f(x, mu) + J(x) (w - mu),     f(x) ~ N(f(x, mu), J(x) Sigma J(x)^T)

Reference: Khan, Immer, Abedi & Korzepa, Approximate inference turns deep networks into Gaussian processes, NeurIPS 2019, arXiv 1906.01930;
Immer, Korzepa & Bauer, Improving predictions of Bayesian neural nets via local linearization, AISTATS 2021, arXiv 2008.08400 (section 3.2;
there for Laplace posteriors, here for variational ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from natgrad_apps.bayes.per_example import CHUNK, per_example_rows
from natgrad_apps.bayes.posterior import Part
from natgrad_apps.bayes.variational import Variational
from natgrad_apps.bayes.weights import evaluation_mode
from natgrad_apps.errors import ShapeError

DRAWS = 16
"""Draws that are pushed through the model together; the forward pass at the mean is shared by them."""


@dataclass(frozen=True)
class Linearized:
    """The normal distribution of the outputs at each input; outputs of different inputs are correlated too, which this leaves out.

    Attributes:
        mean: ``f(x_n, mu)``, ``[N, C]``, float64.
        covariance: ``J_n Sigma J_n^T``, ``[N, C, C]``, float64.
    """

    mean: Tensor
    covariance: Tensor

    def probit(self) -> Tensor:
        r"""Probabilities of classes ``[N, C]`` in closed form, ``softmax(f_c / sqrt(1 + pi/8 Sigma_cc))``; one logit gives two classes.

        For one logit this is MacKay's approximation of ``E sigmoid(f)`` (The evidence framework applied to classification networks, 1992);
        for several its mean-field form, which ignores their correlations (Lu, Ie & Sha, arXiv 2006.07584, equation 12).
        """
        scaled = self.mean / (1 + math.pi / 8 * self.covariance.diagonal(dim1=-2, dim2=-1)).sqrt()
        if scaled.shape[1] == 1:
            scaled = torch.cat([torch.zeros_like(scaled), scaled], 1)
        return scaled.softmax(-1)

    def mutual_information(self, noise_std: Tensor) -> Tensor:
        """Of an observation ``y_n = f(x_n, w) + e``, ``e ~ N(0, s^2 I)``, and the weights: ``1/2 log det(I + K / s^2)`` in nats, ``[N]``.

        Args:
            noise_std: ``s``, 0-d.
        """
        eye = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        found: Tensor = torch.logdet(eye + self.covariance / noise_std.double().square()) / 2
        return found

    def information_gain(self, targets: Tensor, noise_std: Tensor) -> Tensor:
        r"""How much one observation tells of the weights: ``KL(q_n || q)`` in nats, ``[N]``, each input taken by itself.

        ``q_n`` is the posterior of the linearized model after ``y_n = f(x_n, w) + e``, ``e ~ N(0, s^2 I)``, with ``q`` as the prior. With
        ``K = J Sigma J^T``, ``S = K + s^2 I`` and the residual ``r = y_n - f(x_n, mu)``, Kalman's update moves the mean by
        ``Sigma J^T S^-1 r`` and takes ``Sigma J^T S^-1 J Sigma`` from the covariance, so that::

            KL(q_n || q) = 1/2 [r^T S^-1 K S^-1 r - tr(S^-1 K) + log det(S / s^2)]

        Its expectation over ``r ~ N(0, S)`` is `mutual_information`.

        Args:
            targets: ``[N, C]``.
            noise_std: ``s``, 0-d.

        Raises:
            ShapeError: The targets do not have the shape of the outputs.
        """
        if targets.shape != self.mean.shape:
            raise ShapeError(f"targets have the shape {tuple(targets.shape)}, the outputs {tuple(self.mean.shape)}; they must be equal")
        residual, variance = (targets.double() - self.mean).unsqueeze(-1), noise_std.double().square()
        eye = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        total = self.covariance + variance * eye
        solved = torch.linalg.solve(total, torch.cat([residual, self.covariance], -1))
        pull, ratio = solved[..., :1], solved[..., 1:]
        shift = (pull.mT @ self.covariance @ pull).flatten()
        trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
        gain: Tensor = (shift - trace + torch.logdet(total / variance)) / 2
        return gain


@torch.no_grad()
def linearize(vi: Variational, x: Any, batch_size: int = 1024) -> Linearized:
    """Distribution of the outputs of the linearized model.

    A row of the Jacobian goes through the posterior's own product with its covariance, so no ``P x P`` matrix is formed, and rows of some
    inputs only are in memory: as many as have ``per_example.CHUNK`` entries (256 MiB in float32), at least the ``C`` rows of one input.

    Cost: for each input ``C`` backward passes and products with the covariance.

    Args:
        vi: A fitted posterior.
        x: Inputs ``[N, ...]``, or a tuple of such arguments.
        batch_size: Most inputs in one pass.
    """
    inputs: tuple[Tensor, ...] = x if isinstance(x, tuple) else (x,)
    parameters = dict(vi.model.named_parameters())
    live = {name: parameters[name] for name in vi.posterior.mean}
    size = sum(p.numel() for p in live.values())
    means, covariances = [], []
    with evaluation_mode(vi.model):
        for whole in _slices(inputs, batch_size):
            outputs = vi.model(*whole)
            count = outputs[0].numel()
            means.append(outputs.reshape(len(outputs), count).double())
            for part in _slices((*whole, outputs), max(1, CHUNK // (size * count))):
                covariances.append(_covariance(vi, live, part[:-1], part[-1]))
    return Linearized(torch.cat(means), torch.cat(covariances))


def _covariance(vi: Variational, live: dict[str, nn.Parameter], inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    """``J_n Sigma J_n^T: [b, C, C]`` of ``b`` inputs."""
    rows, count = len(outputs), outputs[0].numel()
    repeated = tuple(t.repeat_interleave(count, 0) for t in inputs)
    units = torch.eye(count, dtype=outputs.dtype, device=outputs.device).repeat(rows, 1).reshape(-1, *outputs.shape[1:])
    with torch.enable_grad():
        chunks = list(per_example_rows(vi.model, live, repeated, units))
    jacobian = {name: torch.cat([chunk[name] for chunk in chunks]) for name in live}
    total = torch.zeros(rows, count, count, dtype=torch.float64, device=outputs.device)
    for part in vi.posterior.parts.values():
        packed = vmap(_packing(part))(*(jacobian[name] for name in part.parameters))
        product = part.normal.multiply_covariance(packed)
        left, right = (v.reshape(rows, count, -1) for v in (packed, product))
        total += (left @ right.mT).double()
    return (total + total.mT) / 2


def _packing(part: Part) -> Callable[..., Tensor]:
    """`Part.pack` with its tensors as arguments; a function, because `vmap` prints what it is given."""

    def pack(*values: Tensor) -> Tensor:
        return part.pack(values)

    return pack


@torch.no_grad()
def sample_linearized(
    vi: Variational, x: Any, num_samples: int, generator: torch.Generator | None = None, batch_size: int = 1024
) -> Tensor:
    """Outputs of the linearized model at weights drawn from the posterior, ``[S, N, ...]``; each draw is one function of all inputs.

    Cost: a product of the Jacobian with a vector for each draw, about two forward passes.

    Args:
        vi: A fitted posterior.
        x: Inputs ``[N, ...]``, or a tuple of such arguments.
        num_samples: ``S``.
        generator: The only source of randomness if given; else that of ``vi``, which goes on from here.
        batch_size: Rows in one pass.
    """
    inputs: tuple[Tensor, ...] = x if isinstance(x, tuple) else (x,)
    mean = {name: value.clone() for name, value in vi.posterior.mean.items()}
    at_once = max(1, min(DRAWS, CHUNK // sum(v.numel() for v in mean.values())))
    drawn = []
    with evaluation_mode(vi.model):
        for start in range(0, num_samples, at_once):
            noise = [_deviation(vi, mean, generator) for _ in range(min(at_once, num_samples - start))]
            together = {name: torch.stack([values[name] for values in noise]) for name in mean}
            parts = [_moved(vi.model, mean, together, part) for part in _slices(inputs, batch_size)]
            drawn.append(torch.cat(parts, 1))
    return torch.cat(drawn)


def _deviation(vi: Variational, mean: Mapping[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
    """``w - mu`` of a draw."""
    with vi.sample_weights(generator) as model:
        return {name: model.get_parameter(name).detach() - value for name, value in mean.items()}


def _moved(model: nn.Module, mean: dict[str, Tensor], noise: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """``f(x, mu) + J (w - mu)``, ``[S, b, ...]``, for deviations ``[S, ...]``."""
    held: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    rest = {name: value.detach() for name, value in held.items() if name not in mean}

    def outputs(values: dict[str, Tensor]) -> Any:
        return functional_call(model, {**rest, **values}, inputs)

    def moved(change: dict[str, Tensor]) -> Tensor:
        pair: tuple[Tensor, Tensor] = jvp(outputs, (mean,), (change,))  # type: ignore[assignment]
        return pair[0] + pair[1]

    return vmap(moved)(noise)


def _slices(inputs: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    for start in range(0, len(inputs[0]), size):
        yield tuple(t[start : start + size] for t in inputs)
