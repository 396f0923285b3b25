"""True per-example gradients: as outer products for linear layers, by `torch.func` for every other module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from natgrad_apps.errors import ConfigError
from natgrad_apps.linalg.products import matmul_nt

# At most this many gradient entries are formed at a time (256 MiB in float32).
CHUNK = 2**26


def check_examples_independent(model: nn.Module) -> None:
    """Raise unless the output of an example is a function of that example alone.

    Raises:
        ConfigError: Batch normalization in training mode couples the examples, and dropout would draw another mask for every pass.
    """
    for name, module in model.named_modules():
        if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)):
            raise ConfigError(
                f"per-example gradients are not defined with {type(module).__name__} {name!r} in training mode; put it into eval mode, use "
                "LayerNorm or GroupNorm, or take a method on the core (NoisyKFAC, NoisyEKFAC, NoisyAdam)"
            )


def per_example_rows(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: tuple[Any, ...], cotangents: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Chunks of ``J_n^T v_n`` for the examples ``n``: the gradients of ``v_n . f(x_n)``.

    With ``v_n`` the gradient of ``log p(y_n | f_n)`` at the outputs these are the gradients of the log-likelihood. Shared weights, biases
    of convolutions and normalization layers are exact, because nothing is derived from layer inputs. Models with recurrent
    layers of torch take one backward pass an example.

    Args:
        model: Gives ``[N, ...]`` for inputs ``[N, ...]``.
        parameters: Where the gradients are wanted, by name.
        inputs: Arguments of the model, each ``[N, ...]``.
        cotangents: ``v: [N, ...]`` in the shape of the outputs.

    Yields:
        Tensors ``[chunk, *parameter.shape]`` by name.

    Raises:
        ConfigError: See `check_examples_independent`.
    """
    check_examples_independent(model)
    values = {name: p.detach() for name, p in parameters.items()}
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in values}
    rest |= {name: b.detach() for name, b in model.named_buffers()}

    def product(own: dict[str, Tensor], v: Tensor, *x: Tensor) -> Tensor:
        output = functional_call(model, {**rest, **own}, tuple(part.unsqueeze(0) for part in x))
        result: Tensor = (output.squeeze(0) * v).sum()
        return result

    if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # its kernels cannot be vectorized
        for v, *x in zip(cotangents, *inputs, strict=True):
            yield {name: g.unsqueeze(0) for name, g in grad(product)(values, v, *x).items()}
        return
    each = vmap(grad(product), in_dims=(None, 0, *(0 for _ in inputs)))
    step = max(1, CHUNK // sum(p.numel() for p in values.values()))
    for start in range(0, len(cotangents), step):
        part = slice(start, start + step)
        yield each(values, cotangents[part], *(x[part] for x in inputs))


@dataclass(frozen=True)
class LinearPart:
    """A linear layer that was called once on rows: example ``n`` has the gradient ``g_n a_n^T`` of the weight and ``g_n`` of the bias.

    Attributes:
        weight: Where the weight is in the vector of all parameters, or None if it is frozen.
        bias: Where the bias is, or None.
        a: Inputs ``[N, d_in]``.
        g: Gradients at the outputs ``[N, d_out]``.
    """

    weight: slice | None
    bias: slice | None
    a: Tensor
    g: Tensor


@dataclass(frozen=True)
class RowsPart:
    """Parameters whose gradients are kept as they are.

    Attributes:
        where: Where each parameter is in the vector of all parameters.
        rows: ``[N, sum of sizes]``.
    """

    where: Sequence[slice]
    rows: Tensor


class ExampleGradients:
    """``G: [n, N]``, the gradients of ``N`` examples by column, without forming the outer products of linear layers.

    Args:
        size: ``n``.
        examples: ``N``.
        linear: Linear layers.
        rest: Everything else, or None.
    """

    def __init__(self, size: int, examples: int, linear: Sequence[LinearPart], rest: RowsPart | None) -> None:
        self.size, self.width = size, examples
        self._linear, self._rest = linear, rest
        self._like = linear[0].g if linear else rest.rows if rest is not None else torch.zeros(())

    def scaled(self, factor: float) -> ExampleGradients:
        """``factor G``."""
        linear = [LinearPart(part.weight, part.bias, part.a, part.g * factor) for part in self._linear]
        rest = None if self._rest is None else RowsPart(self._rest.where, self._rest.rows * factor)
        return ExampleGradients(self.size, self.width, linear, rest)

    def _split(self) -> list[int]:
        assert self._rest is not None
        return [where.stop - where.start for where in self._rest.where]

    def _empty(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._like.dtype, device=self._like.device)

    def squares(self) -> Tensor:
        """``diag(G G^T): [n]``, the sum over examples of the squared gradients; cost ``N n`` multiply-adds."""
        total = self._empty(self.size)
        for part in self._linear:
            squared = part.g.square()
            if part.weight is not None:
                total[part.weight] = (squared.mT @ part.a.square()).flatten()
            if part.bias is not None:
                total[part.bias] = squared.sum(0)
        if self._rest is not None:
            for where, columns in zip(self._rest.where, self._rest.rows.square().sum(0).split(self._split()), strict=True):
                total[where] = columns
        return total

    def expand(self, z: Tensor, total: Tensor) -> None:
        """Add ``(G z)^T: [k, n]`` to a tensor, for ``z: [N, k]``; cost ``N n k``."""
        for part in self._linear:
            a, shape = part.a, (part.g.shape[1], part.a.shape[1])
            for row, weights in zip(total, z.mT, strict=True):
                weighted = (part.g * weights.unsqueeze(1)).mT
                if part.weight is not None:
                    row[part.weight].view(shape).addmm_(weighted, a)
                if part.bias is not None:
                    row[part.bias].add_(weighted.sum(1))
        if self._rest is not None:
            for where, columns in zip(self._rest.where, (z.mT @ self._rest.rows).split(self._split(), dim=1), strict=True):
                total[:, where] += columns

    def project(self, rows: Tensor) -> Tensor:
        """``G^T x: [N, k]`` for vectors ``x`` that are the rows of ``[k, n]``; cost ``N n k``."""
        total = self._empty(len(rows), self.width)
        for part in self._linear:
            for inner, vector in zip(total, rows, strict=True):
                if part.weight is not None:
                    matrix = vector[part.weight].view(part.g.shape[1], part.a.shape[1])
                    inner.add_((matmul_nt(part.a, matrix) * part.g).sum(1))
                if part.bias is not None:
                    inner.addmv_(part.g, vector[part.bias])
        if self._rest is not None:
            total += torch.cat([rows[:, where] for where in self._rest.where], dim=1) @ self._rest.rows.mT
        return total.mT

    def cross(self, other: ExampleGradients) -> Tensor:
        """``G^T G': [N, N']``; cost ``N N' (d_in + d_out)`` for a linear layer: ``<g a^T, g' a'^T> = <g, g'> <a, a'>``."""
        total = self._empty(self.width, other.width)
        for mine, theirs in zip(self._linear, other._linear, strict=True):
            inputs = mine.a @ theirs.a.mT if mine.weight is not None else 0.0
            total += (mine.g @ theirs.g.mT) * (inputs + (1.0 if mine.bias is not None else 0.0))
        if self._rest is not None:
            assert other._rest is not None
            total += self._rest.rows @ other._rest.rows.mT
        return total

    def dense(self) -> Tensor:
        """``G^T: [N, n]``, all gradients; for small models."""
        total = self._empty(self.width, self.size)
        for part in self._linear:
            if part.weight is not None:
                total[:, part.weight] = (part.g.unsqueeze(2) * part.a.unsqueeze(1)).flatten(1)
            if part.bias is not None:
                total[:, part.bias] = part.g
        if self._rest is not None:
            for where, columns in zip(self._rest.where, self._rest.rows.split(self._split(), dim=1), strict=True):
                total[:, where] = columns
        return total
