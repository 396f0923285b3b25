"""A precision that is a diagonal plus a matrix of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions.base import Normal, log_sum
from natgrad_apps.linalg.spd import eigh_many

_PART = 2**15


@dataclass(frozen=True)
class LowRankNormal(Normal):
    r"""``P = U U^T + diag(d)`` over vectors: the posterior of SLANG.

    With ``V = diag(d)^-1/2 U`` and the eigendecomposition ``V^T V = W diag(e) W^T`` (``L x L``), the Woodbury identity and its analogue for
    the inverse square root read, with ``Y = V W``::

        (I + V V^T)^-1   = I - Y diag(1 / (1 + e)) Y^T
        (I + V V^T)^-1/2 = I - Y diag(1 / (sqrt(1 + e) (1 + sqrt(1 + e)))) Y^T

    (on the eigenvectors ``Y_k / sqrt(e_k)`` both sides are ``1/(1+e)`` and ``1/sqrt(1+e)``, elsewhere 1; the second form does not cancel
    for small ``e``). Draws are ``diag(d)^-1/2 (I + V V^T)^-1/2 z``, and ``log det P = sum log d + sum log(1 + e)``.

    Shapes: ``factor: [n, L]``, ``diagonal: [n]``, positive.
    Cost: ``n L`` for a draw or a product, ``n L^2`` once; memory ``2 n L``.
    Reference: Mishkin, Kunstner, Nielsen, Schmidt & Khan, SLANG: Fast structured covariance approximations for Bayesian deep learning with
    natural gradient, NeurIPS 2018, arXiv 1811.04504.

    Attributes:
        factor: ``U``.
        diagonal: ``d``.
    """

    factor: Tensor
    diagonal: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[n]``."""
        return self.diagonal.shape

    @property
    def like(self) -> Tensor:
        """The diagonal."""
        return self.diagonal

    @cached_property
    def _std(self) -> Tensor:
        """``d^-1/2``."""
        return self.diagonal.rsqrt()

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """``Y^T: [L, n]`` and ``e: [L]``; vectors of length ``n`` are rows, contiguous in memory."""
        rows, parts = self.factor.mT, self._parts()
        inner = torch.stack([(part := rows[:, c] * self._std[c]) @ part.mT for c in parts]).sum(0)
        [(values, vectors)] = eigh_many([inner])
        y = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for c in parts:
            torch.mm(vectors.mT, rows[:, c] * self._std[c], out=y[:, c])
        return y, values

    def _parts(self) -> list[slice]:
        """Ranges of elements: what is made of a range of `factor` stays in the processor's cache."""
        step = self.size if self.diagonal.is_cuda else _PART
        return [slice(start, start + step) for start in range(0, self.size, step)]

    def _reduced(self, v: Tensor, weights: Tensor) -> Tensor:
        """``v - Y diag(weights) Y^T v``; the memory of a single vector is taken."""
        y, _ = self._spectrum
        return v.addmv_(y.mT, (y @ v) * weights, alpha=-1) if v.dim() == 1 else v - ((v @ y.mT) * weights) @ y

    @cached_property
    def _root_weights(self) -> Tensor:
        s = (1 + self._spectrum[1]).sqrt()
        return 1 / (s * (1 + s))

    def root(self, z: Tensor) -> Tensor:
        """See the class."""
        return self._reduced(z.clone(), self._root_weights).mul_(self._std)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """As in `Normal`, without a second tensor."""
        return self._reduced(torch.empty_like(self.diagonal).normal_(generator=generator), self._root_weights).mul_(self._std)

    def multiply_precision(self, v: Tensor) -> Tensor:
        """``U (U^T v) + d v``."""
        return (v @ self.factor) @ self.factor.mT + v * self.diagonal

    def multiply_covariance(self, v: Tensor) -> Tensor:
        """By Woodbury."""
        return self._reduced(v * self._std, 1 / (1 + self._spectrum[1])).mul_(self._std)

    @cached_property
    def _variances(self) -> Tensor:
        y, e = self._spectrum
        shares = [1 - y[:, c].square().mT @ (1 / (1 + e)) for c in self._parts()]
        return torch.cat(shares).clamp_min_(torch.finfo(y.dtype).eps).div_(self.diagonal)

    def variances(self) -> Tensor:
        """``(1 - sum_k Y_ik^2 / (1 + e_k)) / d_i``; the difference has an absolute error of about the machine's epsilon."""
        return self._variances

    @cached_property
    def _trace(self) -> Tensor:
        y, e = self._spectrum
        lost = torch.stack([(y[:, c] * self._std[c]).square_().sum(1) for c in self._parts()]).sum(0)
        root: Tensor = torch.linalg.vector_norm(self._std)
        return root.square() - (lost / (1 + e)).sum()

    def trace(self) -> Tensor:
        """``sum_i 1 / d_i - sum_k (sum_i Y_ik^2 / d_i) / (1 + e_k)``."""
        return self._trace

    @cached_property
    def _logdet(self) -> Tensor:
        return log_sum(self.diagonal) + self._spectrum[1].log1p().sum()

    def logdet_precision(self) -> Tensor:
        """See the class."""
        return self._logdet
