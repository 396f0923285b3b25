"""Posteriors in Pyro: distributions that Pyro lacks, and the model and the guide of a fitted network. Only this file imports Pyro."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints, register_kl
from torch.distributions import Normal as TorchNormal

from natgrad_apps.bayes.distributions import KroneckerNormal, LowRankNormal, Normal
from natgrad_apps.bayes.distributions.products import trace_of_product
from natgrad_apps.bayes.tasks import RegressionTask
from natgrad_apps.bayes.variational import Variational
from natgrad_apps.errors import ConfigError, ShapeError

_F = TypeVar("_F", bound=Callable[..., Tensor])
_register: Callable[[type, type], Callable[[_F], _F]] = register_kl


class StructuredNormal(TorchDistribution):
    """``N(loc, P^-1)`` with any structure of the precision that `natgrad_apps.bayes.distributions` has; no batch dimensions.

    Args:
        loc: The mean, in the shape of a draw.
        normal: The deviation from it.

    Raises:
        ShapeError: The shapes differ.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's interface
    has_rsample = True

    def __init__(self, loc: Tensor, normal: Normal) -> None:
        if loc.shape != normal.shape:
            raise ShapeError(f"loc has the shape {tuple(loc.shape)}, the distribution {tuple(normal.shape)}; they must be equal")
        self.loc, self.normal = loc, normal
        super().__init__(torch.Size(), normal.shape, validate_args=False)

    @property
    def support(self) -> Any:
        """All real tensors of the shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """``loc``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Marginal variances."""
        return self.normal.variances()

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        """Draws ``loc + P^-1/2 z``, differentiable in `loc`.

        Args:
            sample_shape: Leading dimensions.
        """
        z = torch.randn(*sample_shape, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.normal.root(z)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, one for each leading index.

        Args:
            value: ``[..., *event_shape]``.
        """
        return self.normal.log_prob(value - self.loc)

    def entropy(self) -> Tensor:
        """In nats."""
        return self.normal.entropy()

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuredNormal:
        """The distribution itself: it has no batch dimensions.

        Raises:
            ConfigError: Another batch shape than ``()`` is wanted.
        """
        if tuple(batch_shape):
            raise ConfigError(
                f"{type(self).__name__} has no batch dimensions, cannot expand to {tuple(batch_shape)}; sample outside plates"
            )
        return self


class MatrixNormal(StructuredNormal):
    """Matrix-variate normal: ``vec(W - loc)`` (row-major) has the covariance ``scale (L L^T)^-1 (x) (R R^T)^-1``.

    Args:
        loc: ``[r, c]``.
        row_precision_tril: ``L: [r, r]``, lower triangular with a positive diagonal.
        column_precision_tril: ``R: [c, c]``.
        scale: Factor of the covariance.
    """

    def __init__(self, loc: Tensor, row_precision_tril: Tensor, column_precision_tril: Tensor, scale: float = 1.0) -> None:
        super().__init__(loc, KroneckerNormal((row_precision_tril,), (column_precision_tril,), loc.new_tensor(scale)))


class PrecisionLowRankNormal(StructuredNormal):
    """``N(loc, (U U^T + diag(d))^-1)`` over vectors.

    Args:
        loc: ``[n]``.
        precision_factor: ``U: [n, L]``.
        precision_diag: ``d: [n]``, positive.
    """

    def __init__(self, loc: Tensor, precision_factor: Tensor, precision_diag: Tensor) -> None:
        super().__init__(loc, LowRankNormal(precision_factor, precision_diag))


@_register(StructuredNormal, Independent)
def _kl_to_independent(q: StructuredNormal, p: Independent[Any]) -> Tensor:
    """``1/2 sum (v + (m - m0)^2) / s^2 - n/2 + sum log s + 1/2 log det P`` for independent normal elements ``N(m0, s^2)``."""
    base = p.base_dist
    if not isinstance(base, TorchNormal) or p.event_shape != q.event_shape or p.batch_shape:
        raise NotImplementedError(f"KL of a structured normal of shape {tuple(q.event_shape)} to {p}")
    moments = (q.variance + (q.loc - base.loc).square()) / base.scale.square() - 1 + 2 * base.scale.log()
    return (moments.expand(q.event_shape).sum() + q.normal.logdet_precision()) / 2


@_register(StructuredNormal, StructuredNormal)
def _kl_between(q: StructuredNormal, p: StructuredNormal) -> Tensor:
    """``1/2 [tr(P_p Sigma_q) + d^T P_p d - n + log det P_q - log det P_p]``."""
    if q.event_shape != p.event_shape:
        raise NotImplementedError(f"KL between shapes {tuple(q.event_shape)} and {tuple(p.event_shape)}")
    deviation = q.loc - p.loc
    quadratic = (deviation * p.normal.multiply_precision(deviation)).sum()
    return (_trace(q, p) + quadratic - q.normal.size + q.normal.logdet_precision() - p.normal.logdet_precision()) / 2


def _trace(q: StructuredNormal, p: StructuredNormal) -> Tensor:
    """``tr(P_p Sigma_q)``: closed for matrix normals; ``d_p . var_q + tr(U_p^T Sigma_q U_p)`` of two with low rank, cost ``n L^2``.

    Else ``tr(R^T P_p R)`` with a root ``R`` of the covariance: ``n`` products.
    """
    own, prior = q.normal, p.normal
    if isinstance(q, MatrixNormal) and isinstance(p, MatrixNormal):
        return trace_of_product(prior, own)
    if isinstance(own, LowRankNormal) and isinstance(prior, LowRankNormal):
        rows = prior.factor.mT
        return (prior.diagonal * q.variance).sum() + (rows * own.multiply_covariance(rows)).sum()
    eye = torch.eye(own.size, dtype=q.loc.dtype, device=q.loc.device).reshape(own.size, *own.shape)
    roots = own.root(eye)
    return (roots * prior.multiply_precision(roots)).sum()


def pyro_model(vi: Variational) -> Callable[..., Tensor]:
    """The Bayesian network as a Pyro model ``model(x, y=None)``: one site for each part of the posterior, and ``obs``.

    The prior, the noise and the size of the data set are those of `vi` when the model runs. Batches are scaled up to the data set.

    Args:
        vi: What was fitted.

    Raises:
        ConfigError: The prior is the posterior of an earlier training, which is not translated.
    """
    if vi.prior.joins:
        raise ConfigError("pyro_model() needs an isotropic prior, this one is the posterior of an earlier training")

    def model(x: Any, y: Tensor | None = None) -> Tensor:
        values: dict[str, Tensor] = {}
        mean = vi.posterior.mean
        for name, part in vi.posterior.parts.items():
            std = part.pack([vi.prior.of(p).rsqrt().to(mean[p]).expand(mean[p].shape) for p in part.parameters])
            drawn = pyro.sample(_site(name), _event(dist.Normal(torch.zeros_like(std), std), std.dim()))
            values.update(part.scatter(drawn))
        inputs = x if isinstance(x, tuple) else (x,)
        outputs: Tensor = torch.func.functional_call(vi.model, values, inputs)
        count = math.prod(vi.task.likelihood(outputs).term_shape)
        with pyro.poutine.scale(scale=vi.num_data / count):
            pyro.sample("obs", _observation(vi, outputs), obs=None if y is None else vi.task.targets(outputs, y))
        return outputs

    return model


def pyro_guide(vi: Variational, *, trainable: bool = False) -> Callable[..., None]:
    """The posterior as a Pyro guide for `pyro_model`, under ``Trace_ELBO`` and (with closed-form KLs) ``TraceMeanField_ELBO``.

    Args:
        vi: What was fitted; the guide follows it.
        trainable: Whether the means are Pyro parameters ``<site>.loc`` that begin at the posterior's; covariances stay fixed.
    """

    def guide(x: Any = None, y: Tensor | None = None) -> None:
        del x, y
        mean = vi.posterior.mean
        for name, part in vi.posterior.parts.items():
            site = _site(name)
            loc = part.gather(mean).detach().clone()
            if trainable:
                loc = pyro.param(f"{site}.loc", loc)
            pyro.sample(site, StructuredNormal(loc, part.normal))

    return guide


def _site(part: str) -> str:
    return f"w.{part}"


def _observation(vi: Variational, outputs: Tensor) -> Any:
    if isinstance(vi.task, RegressionTask):
        return _event(dist.Normal(outputs, vi.task.noise_std.to(outputs)), outputs.dim())
    if outputs.dim() == 1 or outputs.shape[-1] == 1:
        return _event(dist.Bernoulli(logits=outputs), outputs.dim())
    return _event(dist.Categorical(logits=outputs), outputs.dim() - 1)


def _event(distribution: Any, dimensions: int) -> Any:
    """All dimensions as one event (Pyro's own method has no types)."""
    return distribution.to_event(dimensions)
