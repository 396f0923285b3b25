"""Weighted likelihood terms: the Fisher of the weighted mean, ``sum_t w_t F_t / sum_t w_t``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Diagonal, Exact, Fisher, GramKFAC, Periodic, Preconditioner, Subsample, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.errors import ConfigError, ShapeError
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint
from natgrad_apps.likelihoods.base import Likelihood
from tests._dense import categorical_root, fisher_block, gaussian_root, layer_jacobian
from tests._feed import dense

pytestmark = pytest.mark.usefixtures("float64")

WEIGHTS = torch.tensor([0.0, 1.0, 0.25, 0.0, 3.0, 1.0], dtype=torch.float64)
KEPT = [1, 4, 5]
LAMBDA = 0.5


def fed(
    model: nn.Module, x: Tensor, curvature: Curvature, weights: Tensor | None, fisher: Fisher, gaussian: bool = False
) -> Preconditioner:
    preconditioner = Preconditioner(model, curvature, damping=Tikhonov(LAMBDA), fisher=fisher, refresh=Periodic(inverse_period=1))
    with preconditioner.capture():
        outputs = model(x)
        likelihood: Likelihood = Gaussian(outputs) if gaussian else Categorical(outputs)
        preconditioner.observe(likelihood if weights is None else likelihood.weighted(weights))
    preconditioner.update()
    return preconditioner


def weighted_block(outputs: Tensor, layer: nn.Module, root: Tensor) -> Tensor:
    jac = layer_jacobian(outputs, layer)
    pulled = torch.einsum("me...d,mec->mc...d", jac, root)
    return torch.einsum("m,mc...d,mc...f->...df", WEIGHTS, pulled, pulled) / WEIGHTS.sum()


def test_exact_block_of_every_layer() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    outputs = model(x)
    preconditioner = fed(model, x, Exact(), WEIGHTS, Fisher("exact"))
    for name in ("0", "2"):
        block = weighted_block(outputs, model.get_submodule(name), categorical_root(outputs))
        # float64, sums of fewer than 100 terms
        torch.testing.assert_close(dense(preconditioner, name), block + LAMBDA * torch.eye(len(block)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("curvature", [KFAC(), GramKFAC()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("width", [2, 9])
def test_kfac_of_a_linear_layer_with_squared_error_is_exact(curvature: Curvature, width: int) -> None:
    model, x = nn.Sequential(nn.Linear(width, 3)), torch.randn(6, width)
    preconditioner = fed(model, x, curvature, WEIGHTS, Fisher("exact"), gaussian=True)
    outputs = model(x)
    block = weighted_block(outputs, model[0], gaussian_root(outputs))
    torch.testing.assert_close(dense(preconditioner, "0"), block + LAMBDA * torch.eye(len(block)), rtol=1e-10, atol=1e-12)


def test_diagonal_of_a_bare_parameter_does_not_depend_on_the_scale_of_the_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(6, 4)
    first, second = (dense(fed(model, x, Diagonal(), WEIGHTS * scale, Fisher("exact")), "0") for scale in (1.0, 7.0))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)
    outputs = model(x)
    block = weighted_block(outputs, model[0], categorical_root(outputs)).diagonal() + LAMBDA
    torch.testing.assert_close(first.diagonal(), block, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("curvature", [KFAC(), GramKFAC()], ids=lambda c: type(c).__name__)
def test_weights_zero_and_one_are_a_subset(curvature: Curvature, sharing: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    mask = torch.zeros(6)
    mask[KEPT] = 1.0
    whole = fed(model, x, curvature, mask, Fisher("exact", sharing=sharing))
    part = fed(model, x[KEPT], curvature, None, Fisher("exact", sharing=sharing))
    for name in ("0", "2"):
        torch.testing.assert_close(dense(whole, name), dense(part, name), rtol=1e-10, atol=1e-12)


def test_equal_weights_change_nothing() -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    weighted, plain = (fed(model, x, KFAC(), w, Fisher("mc", seed=3)) for w in (torch.full((6,), 0.3), None))
    for name in ("0", "2"):
        torch.testing.assert_close(dense(weighted, name), dense(plain, name), rtol=1e-12, atol=1e-12)


def test_micro_batches_count_by_their_weights() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    preconditioner = Preconditioner(model, Exact(), damping=LAMBDA, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with preconditioner.capture():
        for part in (slice(0, 3), slice(3, 6)):
            preconditioner.observe(Categorical(model(x[part])).weighted(WEIGHTS[part]))
    preconditioner.update()
    outputs = model(x)
    block = weighted_block(outputs, model[0], categorical_root(outputs))
    torch.testing.assert_close(dense(preconditioner, "0"), block + LAMBDA * torch.eye(len(block)), rtol=1e-10, atol=1e-12)


def test_subsampled_units_keep_their_weights() -> None:
    """Stride 2 begins with unit 0 in the first batch: units 0, 2, 4, of which 2 and 4 have a weight."""
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    preconditioner = fed(model, x, KFAC(), WEIGHTS, Fisher("exact", subsample=Subsample(units=2)))
    a = torch.cat([x, torch.ones(6, 1)], 1)[::2]
    w = WEIGHTS[::2]
    torch.testing.assert_close(preconditioner.blocks["0"].state.moments["A0"], (a.mT * w) @ a / w.sum(), rtol=1e-12, atol=1e-12)


def test_terms_of_sequences_weigh_rows() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(3, 2, 4)
    weights = WEIGHTS.reshape(3, 2)
    preconditioner = fed(model, x, KFAC(), weights, Fisher("exact"), gaussian=True)
    flat = x.flatten(0, 1)
    a = torch.cat([flat, torch.ones(6, 1)], 1)
    A = (a.mT * WEIGHTS) @ a / WEIGHTS.sum()
    torch.testing.assert_close(dense(preconditioner, "0"), torch.kron(torch.eye(3), A) + LAMBDA * torch.eye(15), rtol=1e-10, atol=1e-12)


def test_a_layer_with_other_units_averages_all_its_inputs() -> None:
    """Five units feed one term each of a pooled pair: the weights say nothing about single units."""
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)
    preconditioner = Preconditioner(model, KFAC(), damping=LAMBDA, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with preconditioner.capture():
        outputs = model(x)
        preconditioner.observe(Categorical(torch.stack([outputs[:2].sum(0), outputs[2:].sum(0)])).weighted(torch.tensor([1.0, 0.0])))
    preconditioner.update()
    a = torch.cat([x, torch.ones(5, 1)], 1)
    torch.testing.assert_close(preconditioner.blocks["0"].state.moments["A0"], a.mT @ a / 5, rtol=1e-12, atol=1e-12)


def test_unweighted_block_is_the_reference() -> None:
    """The derivation above with equal weights is `fisher_block`, which other tests trust."""
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    outputs = model(x)
    preconditioner = fed(model, x, Exact(), torch.ones(6), Fisher("exact"))
    block = fisher_block(outputs, model[0], categorical_root(outputs))
    torch.testing.assert_close(dense(preconditioner, "0"), block + LAMBDA * torch.eye(len(block)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        (torch.ones(5), ShapeError, r"the shape of the terms, \(6,\)"),
        (torch.ones(6, dtype=torch.int64), TypeError, "floating tensor"),
        (torch.zeros(6), ConfigError, "every weight is zero"),
        (-WEIGHTS, ConfigError, "finite and >= 0"),
        (torch.full((6,), torch.nan), ConfigError, "finite and >= 0"),
    ],
    ids=["shape", "dtype", "zero", "negative", "nan"],
)
def test_illegal_weights(weights: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Categorical(torch.randn(6, 3)).weighted(weights)


def test_heads_of_a_joint_are_weighted_together() -> None:
    policy, value = Categorical(torch.randn(6, 3)), Gaussian(torch.randn(6))
    with pytest.raises(ConfigError, match=r"use Joint\(...\)\.weighted"):
        Joint(policy.weighted(WEIGHTS), value)
    assert Joint(policy, value).weighted(WEIGHTS).total_weight == WEIGHTS.sum()
