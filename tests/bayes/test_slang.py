"""SLANG: the eigensolver against dense eigendecompositions, one step against the algorithm written densely."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import SLANG, Prior, Regression, Variational
from natgrad_apps.bayes.eigensolver import OuterSum, leading_factor
from natgrad_apps.bayes.per_example import ExampleGradients, LinearPart, RowsPart
from natgrad_apps.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")


def spectrum(size: int, columns: int, ratio: float) -> Tensor:
    """``C: [size, columns]`` whose squared singular values fall by a ratio."""
    left, right = (torch.linalg.qr(torch.randn(n, min(size, columns))).Q for n in (size, columns))
    values = ratio ** (torch.arange(min(size, columns)) / 2)
    product: Tensor = (left * values) @ right.mT
    return product


def outer_sum(c: Tensor, width: int) -> OuterSum:
    """Some columns as the factor, the others as gradients of examples."""
    return OuterSum(c[:, :width].mT, [ExampleGradients(len(c), c.shape[1] - width, [], RowsPart([slice(0, len(c))], c[:, width:].mT))])


@pytest.mark.parametrize(
    ("size", "columns", "rank"), [(50, 12, 3), (50, 2, 4), (9, 300, 4)], ids=["few columns", "fewer than the rank", "few weights"]
)
def test_leading_factor_is_the_best_of_its_rank(size: int, columns: int, rank: int) -> None:
    c = spectrum(size, columns, 0.5)
    parts = outer_sum(c, columns // 2)
    found = leading_factor(parts, rank).mT
    values, vectors = torch.linalg.eigh(c @ c.mT)
    top = vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()
    assert found.shape == (size, rank)
    expected = torch.cat([torch.zeros(rank), values.clamp_min(0)])[-rank:]
    # float64, eigenvalues of at most 1 that differ by a factor 2
    torch.testing.assert_close(torch.linalg.eigvalsh(found.mT @ found), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found @ found.mT, top @ top.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.diagonal(), (c @ c.mT).diagonal(), rtol=1e-12, atol=1e-12)


def test_products_of_example_gradients_are_those_of_the_dense_matrix() -> None:
    """A linear layer with bias, one without, a frozen weight with its bias, and other parameters in between."""
    shapes = [(slice(0, 6), slice(6, 8)), (slice(10, 14), None), (None, slice(14, 17))]

    def part(examples: int) -> tuple[ExampleGradients, Tensor]:
        linear, dense = [], torch.zeros(examples, 17)
        for (weight, bias), (d_in, d_out) in zip(shapes, [(3, 2), (2, 2), (4, 3)], strict=True):
            a, g = torch.randn(examples, d_in), torch.randn(examples, d_out)
            linear.append(LinearPart(weight, bias, a, g))
            if weight is not None:
                dense[:, weight] = torch.stack([torch.outer(v, u).flatten() for v, u in zip(g, a, strict=True)])
            if bias is not None:
                dense[:, bias] = g
        dense[:, 8:10] = torch.randn(examples, 2)
        return ExampleGradients(17, examples, linear, RowsPart([slice(8, 9), slice(9, 10)], dense[:, 8:10])), dense

    (first, one), (second, two) = part(5), part(4)
    x, z = torch.randn(17, 3), torch.randn(5, 2)
    # float64, sums of at most 17 terms
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(first.dense(), one)
    close(first.squares(), one.square().sum(0))
    close(first.project(x.mT.contiguous()), one @ x)
    total = torch.ones(2, 17)
    first.expand(z, total)
    close(total, 1 + z.mT @ one)
    close(first.cross(second), one @ two.mT)
    close(first.scaled(0.5).dense(), one / 2)
    factor = torch.randn(17, 2)
    whole = torch.cat([factor, one.mT, two.mT], 1)
    outer = OuterSum(2 * factor.mT.contiguous(), [first, second], 0.5)
    close(outer.inner(), whole.mT @ whole)
    close(outer.dense(), whole @ whole.mT)
    close(outer.expand(whole.mT @ x), (whole @ whole.mT @ x).mT)
    close(outer.diagonal(), (whole @ whole.mT).diagonal())


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_two_steps_are_the_algorithm(fisher: str) -> None:
    """Full batch, no noise (``lambda -> 0``), so that the algorithm can be written with dense matrices at known weights."""
    n, rank, decay, lr, damping, first = 20, 2, 0.7, 0.1, 0.2, 0.5
    x, y = torch.randn(n, 3), torch.randn(n, 2)
    model = nn.Linear(3, 2, bias=False)
    weight = model.weight.detach().clone().flatten()
    method = SLANG(rank=rank, lr=lr, decay=decay, momentum=0.0, damping=damping, fisher=fisher, initial_curvature=first)
    vi = Variational(model, method=method, task=Regression(4.0), num_data=n, prior=Prior(1.0), temperature=1e-30)
    low, diagonal = torch.zeros(6, 6), torch.full((6,), first)
    for _ in range(2):
        vi.step(x, y)
        residual = y - x @ weight.reshape(2, 3).mT
        rows = torch.einsum("no,ni->noi", 4.0 * residual, x).flatten(1)
        gradient = -rows.mean(0)
        if fisher == "exact":
            rows = torch.cat([torch.einsum("o,ni->noi", 2.0 * unit, x).flatten(1) for unit in torch.eye(2)])
        average = decay * low + (1 - decay) * rows.mT @ rows / n
        values, vectors = torch.linalg.eigh(average)
        new = vectors[:, -rank:] @ torch.diag(values[-rank:]) @ vectors[:, -rank:].mT
        diagonal = decay * diagonal + (average - new).diagonal()
        low = new
        weight = weight - lr * torch.linalg.solve(low + torch.diag(diagonal + damping), gradient)
        # float64, 6 x 6
        torch.testing.assert_close(model.weight.flatten(), weight, rtol=1e-9, atol=1e-9)
    precision = vi.posterior.multiply_precision({"weight": torch.ones(2, 3)})["weight"].flatten()
    torch.testing.assert_close(precision * 1e-30 / n, (low + torch.diag(diagonal)).sum(1), rtol=1e-9, atol=1e-9)


def test_a_part_of_the_examples_and_of_the_steps_estimates_the_same_curvature() -> None:
    """``lr = 0`` and no noise: every second step renews once the average is full (2.5 steps), from even and from odd rows in turn."""
    n, decay = 10, 0.6
    x, y = torch.randn(n, 3), torch.randn(n, 1)
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    method = SLANG(rank=1, lr=0.0, decay=decay, statistics_period=2, subsample=2, initial_curvature=0.5)
    vi = Variational(model, method=method, task=Regression(), num_data=n, temperature=1e-30)
    rows = (y - model(x)).detach() * x
    low, diagonal = torch.zeros(3, 3), torch.full((3,), 0.5)
    for first in (0, 1, 1, None, 0, None):
        vi.step(x, y)
        if first is not None:
            own = rows[first::2]
            average = decay * low + (1 - decay) * own.mT @ own / 5
            values, vectors = torch.linalg.eigh(average)
            low = values[-1] * torch.outer(vectors[:, -1], vectors[:, -1])
            diagonal = decay * diagonal + (average - low).diagonal()
        precision = vi.posterior.multiply_precision({"0.weight": torch.ones(1, 3)})["0.weight"].flatten()
        # float64, 3 x 3
        torch.testing.assert_close(precision * 1e-30 / n, low.sum(1) + diagonal, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("prior", [Prior(), Prior(learn=True)], ids=["fixed", "learned"])
def test_a_run_between_renewals_is_resumed_bit_by_bit(damping: float, prior: Prior) -> None:
    def build() -> Variational:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        method = SLANG(rank=2, decay=0.5, statistics_period=3, subsample=2, damping=damping)
        return Variational(model, method=method, task=Regression(), num_data=20, prior=prior)

    x, y = torch.randn(8, 3), torch.randn(8)
    through, first, second = build(), build(), build()
    for _ in range(6):
        last = through.step(x, y)
    for _ in range(4):
        first.step(x, y)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        resumed = second.step(x, y)
    assert torch.equal(resumed.nelbo, last.nelbo)
    pairs = zip(through.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_illegal_ranks() -> None:
    with pytest.raises(ConfigError, match="rank must be an integer >= 1, got 0"):
        SLANG(rank=0)
    with pytest.raises(ConfigError, match="subsample must be an integer >= 1, got True"):
        SLANG(subsample=True)
    with pytest.raises(ConfigError, match="rank=5 is more than the number of weights, 4"):
        Variational(nn.Linear(3, 1), method=SLANG(rank=5), task=Regression(), num_data=3)
