"""EKFAC, re-derived: ``F ~ Q diag(s) Q^T``, ``Q = Q_G (x) Q_A``, ``s = diag(Q^T F Q)`` (George et al. 2018, equation 6)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natgrad_apps import EKFAC, FactoredTikhonov, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.damping import Damping
from natgrad_apps.likelihoods import Categorical
from tests._dense import Recorder, block_diagonal, categorical_root, dense_power, fisher, kfac_factors, layer_jacobian, score_root
from tests._feed import dense, feed
from tests.reference._models import CASES, Case

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.03125
every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)


class Truth:
    """``A``, ``G`` and the exact block of every layer for one batch, with a leading group dimension."""

    def __init__(self, made: Case, x: Tensor, targets: Tensor | None = None) -> None:
        model, _, layers = made()
        recorder = Recorder(model, x, list(layers.values()))
        outputs = recorder.outputs
        if targets is None:
            root = categorical_root(outputs)
        else:
            root = score_root(lambda y: torch.distributions.Categorical(logits=y).log_prob(targets), outputs)
        self.A, self.G, self.F = {}, {}, {}
        for name, layer in layers.items():
            A, G = kfac_factors(recorder.inputs(layer), recorder.gradients(layer, root), len(x))
            F = fisher(layer_jacobian(outputs, layer), root)
            self.A[name], self.G[name], self.F[name] = (m if m.ndim == 3 else m[None] for m in (A, G, F))


def basis(A: Tensor, G: Tensor) -> Tensor:
    """``Q_G (x) Q_A`` of one group."""
    return torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])


def fixed(case: Case) -> Case:
    made = case()
    return lambda: made


def build(made: Case, damping: Damping, kind: str = "exact", period: int = 1, decay: float = 0.9) -> Preconditioner:
    return Preconditioner(made()[0], EKFAC(decay=decay), damping=damping, fisher=Fisher(kind), refresh=Periodic(inverse_period=period))


@every
@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("damping", [Tikhonov(LAMBDA), FactoredTikhonov(LAMBDA)], ids=lambda d: type(d).__name__)
def test_diagonal_in_the_eigenbasis_is_that_of_the_fisher(case: Case, kind: str, damping: Damping) -> None:
    made = fixed(case)
    model, x, layers = made()
    targets = torch.randint(3, (len(x),)) if kind == "empirical" else None
    truth = Truth(made, x, targets)
    preconditioner = feed(build(made, damping, kind), model, x, Categorical, targets)
    for name in layers:
        blocks, undamped = [], []
        for A, G, F in zip(truth.A[name], truth.G[name], truth.F[name], strict=True):
            Q = basis(A, G)
            s = (Q.mT @ F @ Q).diagonal()
            blocks.append(Q @ torch.diag(s + LAMBDA) @ Q.mT)
            undamped.append(Q @ torch.diag(s) @ Q.mT)
        expected = torch.block_diag(*blocks)
        torch.testing.assert_close(dense(preconditioner, name), expected, rtol=1e-9, atol=1e-10)
        v = torch.randn(preconditioner.blocks[name].spec.shape)
        for power in (-1.0, -0.5, 0.5):
            product = (dense_power(expected, power) @ v.flatten()).reshape(v.shape)
            torch.testing.assert_close(preconditioner.multiply_power({name: v}, power)[name], product, rtol=1e-9, atol=1e-9)
        quadratic = v.flatten() @ torch.block_diag(*undamped) @ v.flatten()
        torch.testing.assert_close(preconditioner.quadratic({name: v})[name], quadratic, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(preconditioner.logdet()[name], torch.logdet(expected), rtol=1e-10, atol=1e-10)


def test_diagonal_is_averaged_in_a_fixed_basis() -> None:
    """Between refreshes the basis stays that of the first batch; with decay 1/2 three batches weigh 1/4, 1/4, 1/2."""
    made = fixed(CASES[0])
    model, x, layers = made()
    batches = [x, 0.5 * x, x.flip(0) + 0.3]
    truths = [Truth(made, batch) for batch in batches]
    preconditioner = build(made, Tikhonov(LAMBDA), period=100, decay=0.5)
    for batch in batches:
        feed(preconditioner, model, batch, Categorical)
    for name in layers:
        Q = basis(truths[0].A[name][0], truths[0].G[name][0])
        s = sum(w * (Q.mT @ t.F[name][0] @ Q).diagonal() for w, t in zip((0.25, 0.25, 0.5), truths, strict=True))
        assert isinstance(s, Tensor)
        torch.testing.assert_close(dense(preconditioner, name), Q @ torch.diag(s + LAMBDA) @ Q.mT, rtol=1e-10, atol=1e-10)


def test_change_of_basis_keeps_the_diagonal_of_the_old_approximation() -> None:
    """After a refresh ``s`` is the diagonal, in the new basis, of the averaged approximation in the old one."""
    made = fixed(CASES[0])
    model, x, layers = made()
    batches = [x, x.flip(1) - 0.4]
    truths = [Truth(made, batch) for batch in batches]
    preconditioner = build(made, Tikhonov(LAMBDA), period=1)
    for batch in batches:
        feed(preconditioner, model, batch, Categorical)
    for name in layers:
        Q = basis(truths[0].A[name][0], truths[0].G[name][0])
        mean = (truths[0].F[name][0] + truths[1].F[name][0]) / 2
        old = Q @ torch.diag((Q.mT @ mean @ Q).diagonal()) @ Q.mT
        new = basis((truths[0].A[name][0] + truths[1].A[name][0]) / 2, (truths[0].G[name][0] + truths[1].G[name][0]) / 2)
        s = (new.mT @ old @ new).diagonal()
        torch.testing.assert_close(dense(preconditioner, name), new @ torch.diag(s + LAMBDA) @ new.mT, rtol=1e-9, atol=1e-10)
        assert torch.trace(old) == pytest.approx(s.sum().item(), rel=1e-12)


def test_wide_factors_are_kept_as_diagonal_blocks() -> None:
    made = fixed(CASES[0])
    model, x, layers = made()
    truth = Truth(made, x)
    spec = EKFAC(max_factor_size=3)
    preconditioner = Preconditioner(model, spec, damping=Tikhonov(LAMBDA), fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    feed(preconditioner, model, x, Categorical)
    sizes = {4: [2, 2], 5: [3, 2], 3: [3], 6: [3, 3]}
    for name in layers:
        vectors = [
            torch.block_diag(*[torch.linalg.eigh(block)[1] for block in _diagonal_blocks(factor, sizes[len(factor)])])
            for factor in (truth.G[name][0], truth.A[name][0])
        ]
        Q = torch.kron(vectors[0], vectors[1])
        s = (Q.mT @ truth.F[name][0] @ Q).diagonal()
        torch.testing.assert_close(dense(preconditioner, name), Q @ torch.diag(s + LAMBDA) @ Q.mT, rtol=1e-9, atol=1e-10)


def _diagonal_blocks(matrix: Tensor, sizes: list[int]) -> list[Tensor]:
    blocks, start = [], 0
    for size in sizes:
        blocks.append(matrix[start : start + size, start : start + size])
        start += size
    return blocks


def test_grouped_blocks_are_separate() -> None:
    """No curvature between groups, and every group has a basis of its own."""
    made = fixed(CASES[2])
    model, x, layers = made()
    preconditioner = feed(build(made, Tikhonov(LAMBDA)), model, x, Categorical)
    name = next(iter(layers))
    lead = preconditioner.blocks[name].spec.lead
    matrix = dense(preconditioner, name)
    size = len(matrix) // lead[0]
    pieces = torch.stack([matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(lead[0])])
    torch.testing.assert_close(matrix, block_diagonal(pieces), rtol=0, atol=1e-14)
