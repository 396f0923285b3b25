"""Exact Fisher blocks, re-derived from Jacobians: ``F = 1/M sum_m J_m^T H_m J_m`` with ``H_m`` the Fisher of a term's outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import Exact, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from tests._dense import Root, bernoulli_root, block_diagonal, categorical_root, fisher_block, gaussian_root, score_root
from tests._feed import dense, feed
from tests.reference._models import CASES, Case

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
HEADS: dict[str, tuple[Callable[[Tensor], Likelihood], Callable[[Tensor], Root]]] = {
    "categorical": (Categorical, categorical_root),
    "gaussian": (lambda y: Gaussian(y, scale=0.5), lambda y: gaussian_root(y, 0.5)),
    "bernoulli": (Bernoulli, bernoulli_root),
}


def build(model: nn.Module, kind: str, decay: float = 0.9) -> Preconditioner:
    return Preconditioner(model, Exact(decay=decay), damping=Tikhonov(LAMBDA), fisher=Fisher(kind), refresh=Periodic(inverse_period=1))


def damped(matrix: Tensor) -> Tensor:
    return matrix + LAMBDA * torch.eye(len(matrix))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("head", sorted(HEADS))
def test_blocks_equal_the_jacobian_form(case: Case, head: str) -> None:
    model, x, layers = case()
    likelihood, root = HEADS[head]
    preconditioner = feed(build(model, "exact"), model, x, likelihood)
    outputs = model(x)
    for name, layer in layers.items():
        expected = block_diagonal(fisher_block(outputs, layer, root(outputs)))
        torch.testing.assert_close(dense(preconditioner, name), damped(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_empirical_blocks_are_outer_products_of_scores(case: Case) -> None:
    model, x, layers = case()
    outputs = model(x)
    targets = torch.randint(outputs.shape[-1], (len(x),))
    preconditioner = feed(build(model, "empirical"), model, x, Categorical, targets)
    root = score_root(lambda y: torch.distributions.Categorical(logits=y).log_prob(targets), outputs)
    for name, layer in layers.items():
        expected = block_diagonal(fisher_block(outputs, layer, root))
        torch.testing.assert_close(dense(preconditioner, name), damped(expected), rtol=1e-10, atol=1e-10)


def test_average_over_batches_and_the_solve() -> None:
    """The weight of batch t is max(1 - 0.9, 1/t): a plain mean over the first ten batches."""
    case = CASES[0]
    model, x, layers = case()
    preconditioner = build(model, "exact")
    batches = [x, 0.5 * x, x.flip(0) + 0.3]
    for batch in batches:
        feed(preconditioner, model, batch, Categorical)
    for name, layer in layers.items():
        blocks = [fisher_block(y, layer, categorical_root(y)) for y in map(model, batches)]
        expected = damped(block_diagonal(torch.stack(blocks).mean(0)))
        torch.testing.assert_close(dense(preconditioner, name), expected, rtol=1e-10, atol=1e-10)
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        step = preconditioner.multiply_power({name: v}, -1.0)[name]
        torch.testing.assert_close(step.flatten(), torch.linalg.solve(expected, v.flatten()), rtol=1e-10, atol=1e-10)
