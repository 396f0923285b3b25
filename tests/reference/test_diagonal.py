"""The diagonal Fisher, re-derived: ``f_i = 1/M sum_m sum_c (J_m^T h_mc)_i^2``."""

from __future__ import annotations

import pytest
import torch

from natgrad_apps import Diagonal, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.likelihoods import Categorical
from tests._dense import Recorder, block_diagonal, categorical_root, fisher_block, score_root
from tests._feed import dense, feed
from tests.reference._models import CASES, Case

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)


def build(case: Case, fisher: Fisher, decay: float = 0.9) -> tuple[Preconditioner, Case]:
    model, x, layers = case()
    preconditioner = Preconditioner(
        model, Diagonal(decay=decay), damping=Tikhonov(LAMBDA), fisher=fisher, refresh=Periodic(inverse_period=1)
    )
    return preconditioner, lambda: (model, x, layers)


@every
def test_equals_the_diagonal_of_the_exact_fisher(case: Case) -> None:
    preconditioner, made = build(case, Fisher("exact"))
    model, x, layers = made()
    outputs = model(x)
    feed(preconditioner, model, x, Categorical)
    for name, layer in layers.items():
        f = block_diagonal(fisher_block(outputs, layer, categorical_root(outputs))).diagonal()
        torch.testing.assert_close(dense(preconditioner, name), torch.diag(f + LAMBDA), rtol=1e-10, atol=1e-10)
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        for power in (-1.0, -0.5, 0.5):
            expected = ((f + LAMBDA) ** power * v.flatten()).reshape(v.shape)
            torch.testing.assert_close(preconditioner.multiply_power({name: v}, power)[name], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(preconditioner.quadratic({name: v})[name], (f * v.flatten() ** 2).sum(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(preconditioner.logdet()[name], (f + LAMBDA).log().sum(), rtol=1e-10, atol=1e-10)


@every
def test_empirical_is_the_mean_of_squared_gradients_of_single_examples(case: Case) -> None:
    preconditioner, made = build(case, Fisher("empirical"))
    model, x, layers = made()
    outputs = model(x)
    targets = torch.randint(outputs.shape[-1], (len(x),))
    feed(preconditioner, model, x, Categorical, targets)
    root = score_root(lambda y: torch.distributions.Categorical(logits=y).log_prob(targets), outputs)
    for name, layer in layers.items():
        f = block_diagonal(fisher_block(outputs, layer, root)).diagonal()
        torch.testing.assert_close(dense(preconditioner, name).diagonal(), f + LAMBDA, rtol=1e-10, atol=1e-10)


@every
def test_reduce_squares_the_product_of_mean_input_and_summed_gradient(case: Case) -> None:
    preconditioner, made = build(case, Fisher("exact", sharing="reduce"))
    model, x, layers = made()
    feed(preconditioner, model, x, Categorical)
    recorder = Recorder(model, x, list(layers.values()))
    root = categorical_root(recorder.outputs)
    for name, layer in layers.items():
        a, g = recorder.inputs(layer).mean(-2), recorder.gradients(layer, root).sum(-2)
        expected = torch.einsum("c...ni,...nj->...ij", g**2, a**2) / len(x)
        torch.testing.assert_close(dense(preconditioner, name).diagonal(), expected.flatten() + LAMBDA, rtol=1e-10, atol=1e-10)


@every
def test_forward_only_is_the_mean_squared_input(case: Case) -> None:
    preconditioner, made = build(case, Fisher("forward_only"))
    model, x, layers = made()
    feed(preconditioner, model, x, Categorical)
    recorder = Recorder(model, x, list(layers.values()))
    for name, layer in layers.items():
        a = recorder.inputs(layer)
        shape = preconditioner.blocks[name].spec.shape
        expected = (a**2).mean((-3, -2)).unsqueeze(-2).expand(shape)
        torch.testing.assert_close(dense(preconditioner, name).diagonal(), expected.flatten() + LAMBDA, rtol=1e-10, atol=1e-10)


def test_exponential_average() -> None:
    """Weights of the batches with decay 1/2: 1, then 1/2, then 1/2 again (1/t would be 1/3)."""
    preconditioner, made = build(CASES[0], Fisher("exact"), decay=0.5)
    model, x, layers = made()
    batches = [x, 0.5 * x, x.flip(0) + 0.3]
    for batch in batches:
        feed(preconditioner, model, batch, Categorical)
    for name, layer in layers.items():
        f = [fisher_block(y, layer, categorical_root(y)).diagonal() for y in map(model, batches)]
        expected = 0.25 * f[0] + 0.25 * f[1] + 0.5 * f[2]
        torch.testing.assert_close(dense(preconditioner, name).diagonal(), expected + LAMBDA, rtol=1e-10, atol=1e-10)
