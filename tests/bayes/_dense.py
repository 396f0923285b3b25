"""Dense float64 forms of posteriors, made without the classes under test computing with themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import Normal


def precision_matrix(normal: Normal) -> Tensor:
    """``P: [n, n]`` by columns."""
    eye = torch.eye(normal.size, dtype=normal.like.dtype).reshape(normal.size, *normal.shape)
    return normal.multiply_precision(eye).flatten(1)


def sample_covariance(normal: Normal, draws: int, generator: torch.Generator) -> Tensor:
    """Second moment of draws around the known mean zero, ``[n, n]``."""
    z = torch.empty(draws, *normal.shape, dtype=normal.like.dtype).normal_(generator=generator)
    rows = normal.root(z).flatten(1)
    return rows.mT @ rows / draws


def largest_z(estimate: Tensor, covariance: Tensor, draws: int) -> float:
    """Largest deviation of a sample covariance in units of its standard error.

    For normal draws ``Var(w_i w_j) = S_ii S_jj + S_ij^2`` (Isserlis), so the standard error is its square root over that of the draws.
    """
    variances = covariance.diagonal()
    error = ((variances.unsqueeze(0) * variances.unsqueeze(1) + covariance.square()) / draws).sqrt()
    return float(((estimate - covariance) / error).abs().max())


def dense_kl(mean: Tensor, covariance: Tensor, prior_precision: Tensor) -> Tensor:
    """``KL(N(mean, covariance) || N(0, diag(1/p)))`` from determinants of full matrices."""
    q = torch.distributions.MultivariateNormal(mean, covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros_like(mean), torch.diag(1 / prior_precision))
    kl: Tensor = torch.distributions.kl_divergence(q, p)
    return kl
