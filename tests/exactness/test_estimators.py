"""Monte-Carlo, signed and sub-sampled estimates against the exact Fisher, with a stated z-bound; micro-batches against one batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, Fisher, Periodic, Preconditioner, Subsample, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Bernoulli, Categorical, Gaussian, Joint, Likelihood
from tests._dense import Recorder, Root, bernoulli_root, categorical_root, fisher_block, gaussian_root, kfac_factors
from tests._feed import feed

pytestmark = pytest.mark.usefixtures("float64")

DRAWS = 400
# Two-sided probability 6e-7 for each entry of a normal, fewer than 300 entries in all; averages of 400 draws are near enough to normal.
Z = 5.0

HEADS: dict[str, tuple[Callable[[Tensor], Likelihood], Callable[[Tensor], Root]]] = {
    "categorical": (Categorical, categorical_root),
    "gaussian": (lambda y: Gaussian(y, scale=0.5), lambda y: gaussian_root(y, 0.5)),
    "bernoulli": (Bernoulli, bernoulli_root),
}


def draw(
    model: nn.Module,
    x: Tensor,
    curvature: Curvature,
    fisher: Fisher,
    count: int,
    likelihood: Callable[[Tensor], Likelihood],
    targets: Any = None,
) -> list[Tensor]:
    """The only moment (``G`` for K-FAC) of block ``0``, estimated `count` times independently."""
    preconditioner = Preconditioner(model, curvature, fisher=fisher, refresh=Periodic(inverse_period=10**9))
    state, found = preconditioner.blocks["0"].state, []
    for _ in range(count):
        state.count.zero_()  # the next batch replaces the average
        feed(preconditioner, model, x, likelihood, targets)
        found.append(list(state.moments.values())[-1].clone())
    return found


def assert_within_bound(draws: list[Tensor], expected: Tensor) -> None:
    stacked = torch.stack(draws)
    error = (stacked.mean(0) - expected).abs()
    bound = Z * stacked.std(0) / len(draws) ** 0.5 + 1e-12
    assert (error <= bound).all(), f"largest error in standard errors: {(Z * error / bound).max().item():.2f}"


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_sampled_fisher_is_unbiased(head: str, samples: int) -> None:
    likelihood, root = HEADS[head]
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(5, 2)
    recorder = Recorder(model, x, [model[0]])
    G = kfac_factors(recorder.inputs(model[0]), recorder.gradients(model[0], root(recorder.outputs)), len(x))[1]
    F = fisher_block(recorder.outputs, model[0], root(recorder.outputs))
    count = DRAWS // samples
    assert_within_bound(draw(model, x, KFAC(), Fisher("mc", samples=samples), count, likelihood), G)
    assert_within_bound(draw(model, x, Exact(), Fisher("mc", samples=samples), count, likelihood), F)


def test_more_samples_reduce_the_variance_in_proportion() -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)), torch.randn(5, 2)
    variances = []
    for samples in (1, 4):
        variances.append(torch.stack(draw(model, x, KFAC(), Fisher("mc", samples=samples), 300, Categorical)).var(0).sum().item())
    # 300 draws give each variance to about 10 % and their ratio to about 15 %; the bound is three times that
    assert 4 / 1.45 < variances[0] / variances[1] < 4 * 1.45


class Pool(nn.Module):
    """Mixes the positions, so that every term depends on every position."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(1, keepdim=True)


@pytest.mark.parametrize("kind", ["exact", "empirical", "mc"])
def test_terms_that_share_positions_are_summed_without_cross_terms_in_expectation(kind: str) -> None:
    """Tokens that see each other: a position feels several terms; random signs or samples make their cross terms vanish on average."""
    model = nn.Sequential(nn.Linear(2, 2), Pool(), nn.Tanh(), nn.Linear(2, 2))
    x, y = torch.randn(3, 3, 2), torch.randint(2, (3, 3))
    outputs = model(x)
    root = categorical_root(outputs)
    if kind == "empirical":
        root = (nn.functional.one_hot(y, 2) - outputs.softmax(-1)).detach().flatten(0, 1).unsqueeze(-1)
    F = fisher_block(outputs, model[0], root)
    targets = y if kind == "empirical" else None
    assert_within_bound(draw(model, x, Exact(), Fisher(kind), DRAWS, Categorical, targets), F)
    assert_within_bound(draw(model, x, Diagonal(), Fisher(kind), DRAWS, Categorical, targets), F.diagonal().reshape(2, 3))


def test_heads_of_a_joint_add() -> None:
    """The Fisher of independent heads over one trunk is the sum of the Fishers."""
    trunk, policy, value = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.policy, self.value = trunk, policy, value

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x).tanh()
            return self.policy(h), self.value(h).squeeze(-1)

    net, x = Net(), torch.randn(7, 3)
    preconditioner = Preconditioner(net, Exact(), fisher=Fisher("exact"))
    with preconditioner.capture():
        logits, values = net(x)
        preconditioner.observe(Joint(Categorical(logits), Gaussian(values, scale=2.0)))
    preconditioner.update()
    logits, values = net(x)
    values = values.unsqueeze(-1)
    first = fisher_block(logits, trunk, categorical_root(logits))
    second = fisher_block(values, trunk, gaussian_root(values, 2.0))
    found = {name: block.state.moments["F"] for name, block in preconditioner.blocks.items()}
    torch.testing.assert_close(found["trunk"], first + second, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["policy"], fisher_block(logits, policy, categorical_root(logits)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["value"], fisher_block(values, value, gaussian_root(values, 2.0)), rtol=1e-10, atol=1e-12)


CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]
every = pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)


@every
def test_micro_batches_equal_one_batch(curvature: Curvature) -> None:
    """Batches of 3 and 5 observed before one step equal the batch of 8, from the second step on for every curvature.

    EKFAC's first batch defines the basis, so there the micro-batches start from a basis in common.
    """
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    whole, split = (
        Preconditioner(model, curvature, damping=Tikhonov(0.1), fisher=Fisher("exact"), refresh=Periodic(inverse_period=100))
        for _ in range(2)
    )
    first, x = torch.randn(6, 4), torch.randn(8, 4)
    for preconditioner in (whole, split):
        feed(preconditioner, model, first, Categorical)
    feed(whole, model, x, Categorical)
    for part in (x[:3], x[3:]):
        with split.capture():
            split.observe(Categorical(model(part)))
    split.update()
    for name in whole.blocks:
        for key, value in whole.blocks[name].state.moments.items():
            torch.testing.assert_close(split.blocks[name].state.moments[key], value, rtol=1e-12, atol=1e-12)
        assert whole.blocks[name].state.count == split.blocks[name].state.count


@pytest.mark.parametrize("curvature", [KFAC(), Diagonal(), Exact()], ids=lambda c: type(c).__name__)
def test_micro_batches_equal_one_batch_in_the_first_step(curvature: Curvature) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(8, 4)
    whole, split = (Preconditioner(model, curvature, fisher=Fisher("exact")) for _ in range(2))
    feed(whole, model, x, Categorical)
    with split.capture():
        for part in (x[:2], x[2:3], x[3:]):
            split.observe(Categorical(model(part)))
    split.update()
    for name in whole.blocks:
        for key, value in whole.blocks[name].state.moments.items():
            torch.testing.assert_close(split.blocks[name].state.moments[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@every
def test_sub_samples_of_units_average_to_the_batch(curvature: Curvature, sharing: str) -> None:
    """Stride 3 over 9 examples: the mean over the three phases is the statistic of the whole batch, exactly."""
    model, x = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), torch.randn(9, 1, 3, 3)
    refresh = Periodic(inverse_period=1000)
    whole = Preconditioner(model, curvature, fisher=Fisher("exact", sharing=sharing), refresh=refresh)
    part = Preconditioner(model, curvature, fisher=Fisher("exact", sharing=sharing, subsample=Subsample(units=3)), refresh=refresh)
    feed(whole, model, x, Categorical)
    part.load_state_dict(whole.state_dict())
    for block in part.blocks.values():
        block.state.count.zero_()  # the next batches replace what was loaded, in the basis that was loaded
    for _ in range(3):
        feed(part, model, x, Categorical)
    for name in whole.blocks:
        for key, value in whole.blocks[name].state.moments.items():
            torch.testing.assert_close(part.blocks[name].state.moments[key], value, rtol=1e-10, atol=1e-12)


@every
def test_sub_samples_of_positions_average_to_the_batch(curvature: Curvature) -> None:
    """Stride 2 over 4 positions. What a curvature keeps of the cross terms between positions must not be lost on average."""
    model, x = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)), torch.randn(9, 1, 3, 3)
    refresh = Periodic(inverse_period=1000)
    whole = Preconditioner(model, curvature, fisher=Fisher("exact"), refresh=refresh)
    part = Preconditioner(model, curvature, fisher=Fisher("exact", subsample=Subsample(positions=2)), refresh=refresh)
    feed(whole, model, x, Categorical)
    part.load_state_dict(whole.state_dict())
    for block in part.blocks.values():
        block.state.count.zero_()
    for _ in range(2):
        feed(part, model, x, Categorical)
    for key, value in whole.blocks["0"].state.moments.items():
        torch.testing.assert_close(part.blocks["0"].state.moments[key], value, rtol=1e-10, atol=1e-12)


def test_quadratic_form_is_twice_the_divergence_to_second_order() -> None:
    """``KL(p_theta || p_theta+d) = 1/2 d^T F d + O(|d|^3)`` for the exact block of a single layer: the remainder shrinks as h^3."""
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(6, 3)
    preconditioner = feed(Preconditioner(model, Exact(), fisher=Fisher("exact")), model, x, Categorical)
    before = Categorical(model(x)).detach()
    direction = {p: torch.randn_like(p) for p in model.parameters()}
    remainders = []
    for h in (1e-2, 5e-3, 2.5e-3):
        step = {p: h * d for p, d in direction.items()}
        predicted = preconditioner.quadratic(preconditioner.to_blocks(step))["0"] / 2
        with torch.no_grad():
            for p, d in step.items():
                p.add_(d)
            actual = before.kl(Categorical(model(x))).mean()
            for p, d in step.items():
                p.sub_(d)
        remainders.append((actual - predicted).abs().item())
    assert all(later < earlier / 6 for earlier, later in pairwise(remainders))
