"""K-FAC, re-derived: ``F ~ G (x) A`` with ``A = E[a a^T]`` and ``G = 1/M sum g g^T`` (Martens and Grosse 2015; Grosse and Martens 2016)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from natgrad_apps import KFAC, FactoredTikhonov, Fisher, LevenbergMarquardt, Periodic, Preconditioner, Tikhonov
from natgrad_apps.damping import Damping
from natgrad_apps.likelihoods import Categorical
from tests._dense import Recorder, block_diagonal, categorical_root, dense_power, kfac_factors, kron, score_root
from tests._feed import dense, feed
from tests.reference._models import CASES, Case

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
shared = pytest.mark.parametrize("sharing", ["expand", "reduce"])


def build(made: Case, fisher: Fisher, damping: Damping, curvature: KFAC | None = None) -> Preconditioner:
    curvature = KFAC(decay=0.9) if curvature is None else curvature
    return Preconditioner(made()[0], curvature, damping=damping, fisher=fisher, refresh=Periodic(inverse_period=1))


def fixed(case: Case) -> Case:
    """The same network each time."""
    made = case()
    return lambda: made


def expected_factors(made: Case, kind: str, sharing: str, targets: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    model, x, layers = made()
    recorder = Recorder(model, x, list(layers.values()))
    outputs = recorder.outputs
    if kind == "exact":
        root = categorical_root(outputs)
    else:
        assert targets is not None
        root = score_root(lambda y: torch.distributions.Categorical(logits=y).log_prob(targets), outputs)
    return {
        name: kfac_factors(recorder.inputs(layer), recorder.gradients(layer, root), len(x), reduce=sharing == "reduce")
        for name, layer in layers.items()
    }


def factored(A: Tensor, G: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``A + pi sqrt(lambda) I`` and ``G + sqrt(lambda)/pi I``, ``pi^2 = (tr A / d_in) / (tr G / d_out)``, for one group."""
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    return A + pi * math.sqrt(damping) * torch.eye(len(A)), G + math.sqrt(damping) / pi * torch.eye(len(G))


def damped_dense(A: Tensor, G: Tensor, damping: Damping) -> Tensor:
    """The damped block, over all groups."""
    if not damping.factored:
        matrix = block_diagonal(kron(G, A))
        return matrix + LAMBDA * torch.eye(len(matrix))
    pairs = [(A, G)] if A.ndim == 2 else list(zip(A, G, strict=True))
    damped = [factored(a, g, LAMBDA) for a, g in pairs]
    return block_diagonal(torch.stack([torch.kron(g, a) for a, g in damped]))


@every
@shared
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_factors(case: Case, sharing: str, kind: str) -> None:
    made = fixed(case)
    model, x, _ = made()
    targets = torch.randint(3, (len(x),)) if kind == "empirical" else None
    preconditioner = feed(build(made, Fisher(kind, sharing=sharing), Tikhonov(LAMBDA)), model, x, Categorical, targets)
    for name, (A, G) in expected_factors(made, kind, sharing, targets).items():
        moments = preconditioner.blocks[name].state.moments
        torch.testing.assert_close(moments["A0"], A, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments["G0"], G, rtol=1e-12, atol=1e-12)


@every
@shared
@pytest.mark.parametrize(
    "damping", [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA), LevenbergMarquardt(LAMBDA)], ids=lambda d: type(d).__name__
)
def test_damped_form_and_its_powers(case: Case, sharing: str, damping: Damping) -> None:
    made = fixed(case)
    model, x, _ = made()
    preconditioner = feed(build(made, Fisher("exact", sharing=sharing), damping), model, x, Categorical)
    for name, (A, G) in expected_factors(made, "exact", sharing).items():
        expected = damped_dense(A, G, damping)
        torch.testing.assert_close(dense(preconditioner, name), expected, rtol=1e-10, atol=1e-10)
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        for power in (-1.0, -0.5, 0.5, 1.0):
            product = (dense_power(expected, power) @ v.flatten()).reshape(v.shape)
            torch.testing.assert_close(preconditioner.multiply_power({name: v}, power)[name], product, rtol=1e-10, atol=1e-10)
        undamped = v.flatten() @ block_diagonal(kron(G, A)) @ v.flatten()
        torch.testing.assert_close(preconditioner.quadratic({name: v})[name], undamped, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(preconditioner.logdet()[name], torch.logdet(expected), rtol=1e-10, atol=1e-10)


@every
def test_forward_only_replaces_gradients_by_the_identity(case: Case) -> None:
    made = fixed(case)
    model, x, layers = made()
    preconditioner = feed(build(made, Fisher("forward_only"), Tikhonov(LAMBDA)), model, x, Categorical)
    for name, (A, G) in expected_factors(made, "exact", "expand").items():
        eye = torch.eye(G.shape[-1]).expand_as(G)
        expected = block_diagonal(kron(eye, A))
        torch.testing.assert_close(dense(preconditioner, name), expected + LAMBDA * torch.eye(len(expected)), rtol=1e-10, atol=1e-10)
    assert set(layers) == set(preconditioner.blocks)


@pytest.mark.parametrize("damping", [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA)], ids=lambda d: type(d).__name__)
def test_wide_factors_are_kept_as_diagonal_blocks(damping: Damping) -> None:
    """``max_factor_size=3``: a factor of width 5 is kept as blocks of 3 and 2, its other entries are zero; pi uses the same traces."""
    made = fixed(CASES[0])
    model, x, _ = made()
    preconditioner = feed(build(made, Fisher("exact"), damping, KFAC(max_factor_size=3)), model, x, Categorical)
    sizes = {4: [2, 2], 5: [3, 2], 3: [3], 6: [3, 3]}
    for name, (A, G) in expected_factors(made, "exact", "expand").items():
        kept = []
        for factor in (A, G):
            mask = torch.block_diag(*[torch.ones(size, size) for size in sizes[len(factor)]])
            kept.append(factor * mask)
        expected = damped_dense(kept[0], kept[1], damping)
        torch.testing.assert_close(dense(preconditioner, name), expected, rtol=1e-10, atol=1e-10)
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        solved = torch.linalg.solve(expected, v.flatten()).reshape(v.shape)
        torch.testing.assert_close(preconditioner.multiply_power({name: v}, -1.0)[name], solved, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(preconditioner.logdet()[name], torch.logdet(expected), rtol=1e-10, atol=1e-10)


def test_factors_are_averaged_separately() -> None:
    """With decay 1/2 the weights of three batches are 1/4, 1/4, 1/2, for A and G each: the product of averages, not the average product."""
    made = fixed(CASES[0])
    model, x, layers = made()
    preconditioner = build(made, Fisher("exact"), Tikhonov(LAMBDA), KFAC(decay=0.5))
    batches = [x, 0.5 * x, x.flip(0) + 0.3]
    found = []
    for batch in batches:
        feed(preconditioner, model, batch, Categorical)
        found.append(expected_factors(lambda batch=batch: (model, batch, layers), "exact", "expand"))  # type: ignore[misc]
    for name in layers:
        A = 0.25 * found[0][name][0] + 0.25 * found[1][name][0] + 0.5 * found[2][name][0]
        G = 0.25 * found[0][name][1] + 0.25 * found[1][name][1] + 0.5 * found[2][name][1]
        expected = torch.kron(G, A)
        torch.testing.assert_close(dense(preconditioner, name), expected + LAMBDA * torch.eye(len(expected)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("damping", [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA)], ids=lambda d: type(d).__name__)
def test_inverse_is_that_of_the_last_refresh_and_the_quadratic_form_is_current(damping: Damping) -> None:
    made = fixed(CASES[0])
    model, x, _ = made()
    preconditioner = Preconditioner(model, KFAC(), damping=damping, fisher=Fisher("exact"), refresh=Periodic(inverse_period=3))
    feed(preconditioner, model, x, Categorical)
    old = expected_factors(made, "exact", "expand")
    feed(preconditioner, model, 3 * x, Categorical)
    new = expected_factors(lambda: (model, 3 * x, made()[2]), "exact", "expand")
    for name, (A, G) in old.items():
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        solved = torch.linalg.solve(damped_dense(A, G, damping), v.flatten()).reshape(v.shape)
        torch.testing.assert_close(preconditioner.multiply_power({name: v}, -1.0)[name], solved, rtol=1e-10, atol=1e-10)
        current = torch.kron((G + new[name][1]) / 2, (A + new[name][0]) / 2)
        torch.testing.assert_close(preconditioner.quadratic({name: v})[name], v.flatten() @ current @ v.flatten(), rtol=1e-10, atol=1e-10)
