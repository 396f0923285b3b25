"""The Gram form of K-FAC: the dense damped ``G (x) A`` of K-FAC with ``A`` from fewer rows than columns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import FactoredTikhonov, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.curvature.gram_kfac import GramKFAC
from natgrad_apps.damping import Damping
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.linalg.spd import eigh_many
from tests._dense import Recorder, categorical_root, dense_power, kfac_factors
from tests._feed import dense, feed

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
DAMPINGS: list[Damping] = [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA)]
every_damping = pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)


def wide() -> tuple[nn.Sequential, Tensor]:
    """Six rows of 19 columns (the bias included), then six rows of 5 columns: one layer of each form."""
    return nn.Sequential(nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(6, 18)


def build(model: nn.Module, damping: Damping, **options: float) -> Preconditioner:
    return Preconditioner(model, GramKFAC(**options), damping=damping, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))  # type: ignore[arg-type]


def expected(model: nn.Sequential, x: Tensor, layer: nn.Linear, damping: Damping) -> Tensor:
    recorder = Recorder(model, x, [layer])
    A, G = kfac_factors(recorder.inputs(layer), recorder.gradients(layer, categorical_root(recorder.outputs)), len(x))
    if not damping.factored:
        return torch.kron(G, A) + LAMBDA * torch.eye(len(A) * len(G))
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    return torch.kron(G + math.sqrt(LAMBDA) / pi * torch.eye(len(G)), A + pi * math.sqrt(LAMBDA) * torch.eye(len(A)))


@every_damping
@pytest.mark.parametrize("name", ["0", "2"])
def test_equals_the_dense_form(damping: Damping, name: str) -> None:
    model, x = wide()
    preconditioner = feed(build(model, damping), model, x, Categorical)
    block = preconditioner.blocks[name]
    assert ("R" in block.state.moments) == (name == "0")
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    matrix = expected(model, x, layer, damping)
    # float64; a condition number below 1e4 leaves 1e-10 of 1e-16
    torch.testing.assert_close(dense(preconditioner, name), matrix, rtol=1e-10, atol=1e-10)
    v = torch.randn(block.spec.shape)
    for power in (-1.0, -0.5, 0.5):
        product = (dense_power(matrix, power) @ v.flatten()).reshape(v.shape)
        torch.testing.assert_close(preconditioner.multiply_power({name: v}, power)[name], product, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(preconditioner.logdet()[name], torch.logdet(matrix), rtol=1e-10, atol=1e-10)


def test_quadratic_and_spectrum_are_those_of_the_undamped_block() -> None:
    model, x = wide()
    preconditioner = feed(build(model, Tikhonov(LAMBDA)), model, x, Categorical)
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    F = expected(model, x, layer, Tikhonov(LAMBDA)) - LAMBDA * torch.eye(4 * 19)
    v = torch.randn(4, 19)
    torch.testing.assert_close(preconditioner.quadratic({"0": v})["0"], v.flatten() @ F @ v.flatten(), rtol=1e-10, atol=1e-12)
    block = preconditioner.blocks["0"]
    low, high = block.curvature.eigenvalue_range(block.state)
    assert low == 0
    torch.testing.assert_close(high, torch.linalg.eigvalsh(F)[-1], rtol=1e-10, atol=1e-12)


def test_parts_of_a_batch_equal_the_batch() -> None:
    model, x = wide()
    whole = feed(build(model, Tikhonov(LAMBDA)), model, x, Categorical)
    parts = build(model, Tikhonov(LAMBDA))
    for chunk in (x[:2], x[2:]):
        with parts.capture():
            parts.observe(Categorical(model(chunk)))
    parts.update()
    for name in ("0", "2"):
        torch.testing.assert_close(dense(parts, name), dense(whole, name), rtol=1e-10, atol=1e-12)


def test_a_batch_of_another_form_takes_over() -> None:
    """30 rows are more than 19 columns: the dense form, and back again; with decay 0 nothing of the other batch is left."""
    model, x = wide()
    many = torch.randn(30, 18)
    preconditioner = build(model, Tikhonov(LAMBDA), decay=0.0)
    for batch, rows in ((x, True), (many, False), (x, True)):
        feed(preconditioner, model, batch, Categorical)
        assert ("R" in preconditioner.blocks["0"].state.moments) is rows
        layer = model[0]
        assert isinstance(layer, nn.Linear)
        torch.testing.assert_close(dense(preconditioner, "0"), expected(model, batch, layer, Tikhonov(LAMBDA)), rtol=1e-10, atol=1e-10)


def test_parts_of_different_forms_equal_the_batch() -> None:
    model, x = wide()
    many = torch.randn(30, 18)
    whole = feed(build(model, Tikhonov(LAMBDA)), model, torch.cat([x, many]), Categorical)
    parts = build(model, Tikhonov(LAMBDA))
    for chunk in (x, many):
        with parts.capture():
            parts.observe(Categorical(model(chunk)))
    parts.update()
    torch.testing.assert_close(dense(parts, "0"), dense(whole, "0"), rtol=1e-10, atol=1e-12)


def test_constant_rows_are_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(matrices: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        sizes.extend(len(m) for m in matrices)
        return eigh_many(matrices)

    monkeypatch.setattr("natgrad_apps.curvature.gram_kfac.eigh_many", counted)
    model, x = wide()
    preconditioner = build(model, FactoredTikhonov(LAMBDA))
    for _ in range(3):
        feed(preconditioner, model, x, Categorical)
    assert sizes == [6]
    feed(preconditioner, model, x + 1, Categorical)
    assert sizes == [6, 6]
