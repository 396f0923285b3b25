"""The sequence of weight samples of a training: which mirrors which, that each has the posterior's distribution, and exact resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import NoisyKFAC, Regression, Samples, Vadam, Variational
from natgrad_apps.bayes.distributions import DiagonalNormal, KroneckerNormal
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.sampling import Draws
from natgrad_apps.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")
METHODS: dict[str, Method] = {"kronecker": NoisyKFAC(lr=0.05, inverse_period=3), "diagonal": Vadam(lr=0.01)}


def _fit(method: Method, samples: int | Samples) -> tuple[Variational, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    vi = Variational(model, method=method, task=Regression(), num_data=40, num_samples=samples, seed=3)
    return vi, torch.randn(8, 3), torch.randn(8, 1)


def _deviations(vi: Variational, x: Tensor, y: Tensor, steps: int) -> list[Tensor]:
    """Sampled weights minus the mean, ``[n]`` for every forward pass."""
    seen: list[Tensor] = []

    def look(*_: object) -> None:
        held = torch.cat([p.detach().flatten() for p in vi.model.parameters()])
        seen.append(held - torch.cat([m.flatten() for m in vi.posterior.mean.values()]))

    handle = vi.model.register_forward_pre_hook(look)
    for _ in range(steps):
        vi.step(x, y)
    handle.remove()
    return seen


def _numbers(seen: list[Tensor]) -> list[tuple[float, ...]]:
    return [tuple(v.abs().tolist()) for v in seen]


def test_pairs_across_steps_until_the_distribution_changes() -> None:
    """Inverses are renewed by the updates of steps 0, 3 and 6, so the samples of steps 1-3 and 4-6 have one distribution each."""
    vi, x, y = _fit(METHODS["kronecker"], Samples(across_steps=True))
    seen = _deviations(vi, x, y, 8)
    mirrored = [k for k in range(1, 8) if torch.allclose(seen[k], -seen[k - 1], rtol=0, atol=1e-12)]  # mean + e - mean, in float64
    assert mirrored == [2, 5]  # 0 | 1, its image, 3 | 4, its image, 6 | 7: what cannot be mirrored is a draw, the first half of a pair


def test_independent_weights_are_mirrored_in_every_second_step() -> None:
    vi, x, y = _fit(METHODS["diagonal"], Samples(across_steps=True))
    deviations = []
    for _ in range(6):
        std = {name: v.sqrt() for name, v in vi.posterior.variances().items()}
        (seen,) = _deviations(vi, x, y, 1)
        deviations.append(seen / torch.cat([s.flatten() for s in std.values()]))
    for first, second in zip(deviations[::2], deviations[1::2], strict=True):
        torch.testing.assert_close(second, -first, rtol=1e-9, atol=1e-9)  # standard normal numbers, through mean + e - mean
    assert not torch.allclose(deviations[2], deviations[0])
    assert not torch.allclose(deviations[2], -deviations[1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_without_pairs_across_steps_every_step_begins_anew(count: int) -> None:
    vi, x, y = _fit(METHODS["diagonal"], count)
    seen = _deviations(vi, x, y, 3)
    assert len(set(_numbers(seen))) == len(seen)
    for k, v in enumerate(seen):
        index = k % count
        if index % 2:
            torch.testing.assert_close(v, -seen[k - 1], rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(3)
    other, *_ = _fit(METHODS["diagonal"], count)
    first = other.posterior.noise(generator)
    torch.testing.assert_close(seen[0], torch.cat([v.flatten() for v in first.values()]), rtol=1e-9, atol=1e-12)


def test_every_sample_of_the_sequence_has_the_covariance_of_the_posterior() -> None:
    """Second samples of 5,000 pairs: their covariance is the family's, entry by entry within five standard errors."""
    torch.manual_seed(1)
    left, right = (torch.linalg.cholesky(torch.eye(d) + 0.5 * torch.ones(d, d)) for d in (2, 2))
    kronecker = KroneckerNormal((left,), (right,), torch.tensor(0.5))
    diagonal = DiagonalNormal(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    changed = DiagonalNormal(torch.tensor([[3.0, 3.0], [0.5, 1.0]]))
    generator = torch.Generator().manual_seed(0)
    for source, normal in ((kronecker, kronecker), (diagonal, changed)):
        images = []
        for _ in range(5000):
            image = normal.mirror(source.draw_kept(generator)[1], source)
            assert image is not None
            images.append(image.flatten())
        found = torch.stack(images).mT @ torch.stack(images) / len(images)
        dense = normal.multiply_covariance(torch.eye(4).reshape(4, 2, 2)).reshape(4, 4)
        spread = (dense.square() + dense.diagonal()[:, None] * dense.diagonal()).sqrt() / len(images) ** 0.5
        assert bool(((found - dense).abs() <= 5 * spread).all())
    assert kronecker.mirror(torch.zeros(2, 2), changed) is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_a_run_resumes_exactly_between_the_halves_of_a_pair(name: str, steps: int) -> None:
    whole, x, y = _fit(METHODS[name], Samples(across_steps=True))
    _deviations(whole, x, y, steps)
    saved = copy.deepcopy(whole.state_dict())
    other, *_ = _fit(METHODS[name], Samples(across_steps=True))
    other.load_state_dict(saved)
    for a, b in zip(_deviations(whole, x, y, 5), _deviations(other, x, y, 5), strict=True):
        assert torch.equal(a, b)


def test_a_failed_step_takes_no_sample() -> None:
    vi, x, y = _fit(METHODS["diagonal"], Samples(across_steps=True))
    twin, *_ = _fit(METHODS["diagonal"], Samples(across_steps=True))
    _deviations(vi, x, y, 1)
    _deviations(twin, x, y, 1)
    with pytest.raises(Exception, match="shape"):
        vi.step(x, torch.randn(9, 1))
    for a, b in zip(_deviations(vi, x, y, 3), _deviations(twin, x, y, 3), strict=True):
        assert torch.equal(a, b)


def test_pairs_cost_no_new_numbers() -> None:
    vi, *_ = _fit(METHODS["diagonal"], Samples(across_steps=True))
    draws, generator = Draws(Samples(across_steps=True)), torch.Generator().manual_seed(0)
    states = []
    for _ in range(4):
        draws.weights(vi.posterior, 0, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])
    assert not torch.equal(states[1], states[2])


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_must_be_a_positive_integer(count: object) -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        Samples(count)  # type: ignore[arg-type]
