"""The posterior of a trained model, family by family and layer by layer, against what its curvature says densely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import (
    IVON,
    SLANG,
    VOGN,
    VON,
    Classification,
    FullGaussian,
    NoisyAdam,
    NoisyEKFAC,
    NoisyKFAC,
    Posterior,
    Prior,
    Regression,
    Vadam,
    Variational,
    Vprop,
)
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.methods.noisy_learner import NoisyLearner
from tests.bayes._dense import dense_kl, largest_z, precision_matrix, sample_covariance

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore:.*have no layer adapter")]
DRAWS, BOUND = 100_000, 5.0  # see test_distributions
N, LAMBDA, PRECISION = 50, 0.7, 3.0


class Image(nn.Sequential):
    """Convolutions with and without bias, in groups, a normalization layer, and a linear layer; inputs ``[N, 2, 5, 5]``."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 2, 2, stride=2),
            nn.Tanh(),
            nn.Conv2d(2, 4, 2, groups=2, bias=False),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


def trained(method: Any, extrinsic: float = 0.5) -> Variational:
    """A few steps, so that statistics are averages and factors are older than the newest statistics."""
    model = Image()
    vi = Variational(
        model,
        method=method(lr=0.05, damping=extrinsic, inverse_period=2, decay=0.8),
        task=Classification(),
        num_data=N,
        prior=Prior(PRECISION),
        temperature=LAMBDA,
    )
    x, y = torch.randn(8, 2, 5, 5), torch.randint(3, (8,))
    for _ in range(3):
        vi.step(x, y)
    return vi


def intrinsic() -> float:
    return LAMBDA * PRECISION / N


def kron(left: Tensor, right: Tensor) -> Tensor:
    if left.ndim == 2:
        return torch.kron(left, right)
    matrix: Tensor = torch.block_diag(*(torch.kron(a, b) for a, b in zip(left, right, strict=True)))
    return matrix


def eye(size: int) -> Tensor:
    return torch.eye(size)


def trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def expected_precision(vi: Variational, name: str) -> Tensor:
    """``(N/lambda)`` times the damped curvature of a block, from its moments, by the formulas of the papers, without extrinsic damping."""
    learner = vi._learner
    assert isinstance(learner, NoisyLearner)
    block = learner.core.blocks[name]
    moments, gamma = block.state.moments, intrinsic()
    if "diagonal" in moments:
        damped = torch.diag(moments["diagonal"].flatten() + gamma)
    elif "s" in moments:
        a, g = block.state.cache["vectors_A0"], block.state.cache["vectors_G0"]
        basis = kron(g, a)
        damped = basis @ torch.diag(moments["s"].flatten() + gamma) @ basis.mT
    else:
        A, S = moments["A0"], moments["G0"]
        n, p = A.shape[-1], S.shape[-1]
        pi = ((trace(A) / n) / (trace(S) / p)).sqrt()
        damped = kron(S + gamma**0.5 / pi * eye(p), A + pi * gamma**0.5 * eye(n))
    return damped * N / LAMBDA


METHODS = [NoisyAdam, NoisyKFAC, NoisyEKFAC]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", ["0", "2", "3.weight", "3.bias", "5"])
def test_covariance_of_samples(method: Any, block: str) -> None:
    vi = trained(method)
    if method is NoisyKFAC:
        # Its factors are those of the refresh at the third step, whose statistics are the newest.
        assert vi.steps == 3
    normal = vi.posterior.parts[block].normal
    expected = expected_precision(vi, block)
    # float64, condition numbers below 1e4
    torch.testing.assert_close(precision_matrix(normal), expected, rtol=1e-9, atol=1e-9)
    estimate = sample_covariance(normal, DRAWS, torch.Generator().manual_seed(5))
    assert largest_z(estimate, expected.inverse(), DRAWS) < BOUND


def flat(values: Any) -> Tensor:
    return torch.cat([v.reshape(-1) for v in values.values()])


def dense_covariance(posterior: Posterior) -> Tensor:
    """Over all parameters, in the order of the model's, by unit vectors of the parameters."""
    mean = posterior.mean
    shapes = {name: value.shape for name, value in mean.items()}
    rows = []
    for unit in torch.eye(sum(value.numel() for value in mean.values())):
        parts = unit.split([s.numel() for s in shapes.values()])
        values = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        product = posterior.multiply_covariance(values)
        rows.append(torch.cat([product[name].flatten() for name in shapes]))
    return torch.stack(rows)


def trained_flat(method: Method) -> Variational:
    """A few steps of a method over the vector of all weights."""
    model = Image()
    vi = Variational(model, method=method, task=Classification(), num_data=N, prior=Prior(PRECISION), temperature=LAMBDA)
    for _ in range(3):
        vi.step(torch.randn(8, 2, 5, 5), torch.randint(3, (8,)))
    return vi


FLAT = [Vadam(), Vprop(), VOGN(), VON(), IVON(), FullGaussian(), SLANG(rank=3)]


@pytest.mark.parametrize("method", [*METHODS, *FLAT], ids=lambda m: getattr(m, "__name__", type(m).__name__))
def test_kl_log_prob_and_entropy_of_the_whole(method: Any) -> None:
    vi = trained_flat(method) if isinstance(method, Method) else trained(method)
    posterior = vi.posterior
    covariance, mean = dense_covariance(posterior), flat(posterior.mean)
    expected = dense_kl(mean, covariance, torch.full_like(mean, PRECISION))
    # values of about 100 nats: 1e-12 relative, the rounding of sums of 100 logarithms
    torch.testing.assert_close(posterior.kl(vi.prior), expected, rtol=1e-12, atol=0)
    q = torch.distributions.MultivariateNormal(mean, covariance)
    sample = posterior.sample(torch.Generator().manual_seed(0))
    vector = torch.cat([sample[name].flatten() for name in posterior.mean])
    torch.testing.assert_close(posterior.log_prob(sample), q.log_prob(vector), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posterior.entropy(), q.entropy(), rtol=1e-12, atol=0)
    torch.testing.assert_close(flat({n: posterior.variances()[n] for n in posterior.mean}), covariance.diagonal(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", FLAT, ids=lambda m: type(m).__name__)
def test_covariance_of_samples_of_flat_methods(method: Method) -> None:
    vi = trained_flat(method)
    normal = vi.posterior.parts["weights"].normal
    averages = vi._learner.averages()  # type: ignore[attr-defined]
    diagonal = averages.get("squares", averages.get("hessian"))
    if diagonal is not None:
        curvature = torch.diag(diagonal.clamp_min(0))
    elif "curvature" in averages:
        curvature = averages["curvature"]
    else:
        curvature = averages["factor"] @ averages["factor"].mT + torch.diag(averages["diagonal"])
    expected = (curvature + intrinsic() * torch.eye(normal.size)) * N / LAMBDA
    torch.testing.assert_close(precision_matrix(normal), expected, rtol=1e-9, atol=1e-9)
    # 50 weights: 1275 different entries, a false alarm has a probability below 1e-3, once (seeded)
    assert largest_z(sample_covariance(normal, DRAWS, torch.Generator().manual_seed(5)), expected.inverse(), DRAWS) < BOUND


@pytest.mark.parametrize("method", METHODS)
def test_extrinsic_damping_is_not_part_of_the_posterior(method: Any) -> None:
    """With a learning rate of zero both runs see the same weights, so only the damping could make a difference."""
    posteriors = []
    for extrinsic in (0.0, 10.0):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        vi = Variational(model, method=method(lr=0.0, damping=extrinsic), task=Regression(), num_data=10)
        x, y = torch.randn(5, 3), torch.randn(5, 2)
        for _ in range(3):
            vi.step(x, y)
        posteriors.append(vi.posterior)
    first, second = (p.variances() for p in posteriors)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_antithetic_draws_mirror_each_other() -> None:
    vi = trained(NoisyKFAC)
    one, two = vi.posterior.antithetic(torch.Generator().manual_seed(0))
    for name, mean in vi.posterior.mean.items():
        # (mean + v) + (mean - v) rounds twice
        torch.testing.assert_close(one[name] + two[name], 2 * mean, rtol=1e-14, atol=1e-14)
        assert not torch.equal(one[name], two[name])


def test_a_moved_posterior_does_not_follow_the_model() -> None:
    vi = trained(NoisyKFAC)
    copy = vi.posterior.to("cpu")
    before = copy.mean["5.weight"].clone()
    vi.step(torch.randn(8, 2, 5, 5), torch.randint(3, (8,)))
    assert torch.equal(copy.mean["5.weight"], before)
    assert not torch.equal(vi.posterior.mean["5.weight"], before)
