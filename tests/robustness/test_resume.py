"""A run that is stopped and resumed at any step equals the uninterrupted run bit for bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import (
    EKFAC,
    KFAC,
    Diagonal,
    Exact,
    FactoredTikhonov,
    Fisher,
    KLTrustRegion,
    LevenbergMarquardt,
    NaturalGradient,
    Periodic,
    Staggered,
    Subsample,
    Tikhonov,
)
from natgrad_apps.curvature import Curvature
from natgrad_apps.damping import Damping
from natgrad_apps.errors import ConfigError, NonFiniteWarning
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.refresh import Refresh

STEPS = 7
CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]
REFRESHES: list[Refresh] = [Periodic(1, 1), Periodic(2, 3), Staggered(1, 4), Staggered(3, 2)]
DAMPINGS: list[Damping] = [Tikhonov(0.1), FactoredTikhonov(0.1), LevenbergMarquardt(0.1, period=2)]

pytestmark = pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")


def make(curvature: Curvature, refresh: Refresh, damping: Damping) -> tuple[nn.Module, NaturalGradient]:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    fisher = Fisher("mc", subsample=Subsample(units=2), seed=5)
    optimizer = NaturalGradient(
        model, curvature, damping=damping, step=KLTrustRegion(1e-2), refresh=refresh, fisher=fisher, weight_decay=1e-3
    )
    return model, optimizer


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    return [(torch.randn(6, 1, 3, 3, generator=generator), torch.randint(3, (6,), generator=generator)) for _ in range(STEPS)]


def train(model: nn.Module, optimizer: NaturalGradient, x: Tensor, y: Tensor) -> None:
    with optimizer.capture():
        logits = model(x)
        optimizer.observe(Categorical(logits))
    optimizer.zero_grad()
    F.cross_entropy(logits, y).backward()
    optimizer.step(lambda: F.cross_entropy(model(x), y))


def saved(model: nn.Module, optimizer: NaturalGradient) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return buffer.getvalue()


def loaded(data: bytes) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)  # tensors and plain values only
    return result


def assert_same(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert set(first) == set(second), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    else:
        assert first == second, where


@pytest.mark.parametrize("damping", DAMPINGS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("refresh", REFRESHES, ids=lambda r: f"{type(r).__name__}-{r.statistics_period}-{r.inverse_period}")
@pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
def test_resumed_run_is_bit_equal(curvature: Curvature, refresh: Refresh, damping: Damping) -> None:
    model, optimizer = make(curvature, refresh, damping)
    data, checkpoints = batches(), []
    for x, y in data:
        checkpoints.append(saved(model, optimizer))
        train(model, optimizer, x, y)
    final = loaded(saved(model, optimizer))
    for start, checkpoint in enumerate(checkpoints):
        torch.manual_seed(1000 + start)  # the global random state must not matter
        other, resumed = make(curvature, refresh, damping)
        state = loaded(checkpoint)
        other.load_state_dict(state["model"])
        resumed.load_state_dict(state["optimizer"])
        for x, y in data[start:]:
            train(other, resumed, x, y)
        assert_same(final, loaded(saved(other, resumed)), f"resumed at {start}: ")


def test_skipped_steps_are_counted_across_a_resume() -> None:
    model, optimizer = make(KFAC(), Periodic(2, 3), Tikhonov(0.1))
    (x, y), *_ = batches()
    train(model, optimizer, x, y)
    train(model, optimizer, x, y)
    with pytest.warns(NonFiniteWarning):
        train(model, optimizer, x * float("nan"), y)
    other, resumed = make(KFAC(), Periodic(2, 3), Tikhonov(0.1))
    state = loaded(saved(model, optimizer))
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    for one, its in ((model, optimizer), (other, resumed)):
        train(one, its, x, y)
    assert optimizer.preconditioner.skipped_steps == resumed.preconditioner.skipped_steps == 1
    assert_same(loaded(saved(model, optimizer)), loaded(saved(other, resumed)))


def test_loading_copies_what_it_is_given() -> None:
    """Training on after a load leaves the loaded state as it was, so that it can be loaded again."""
    model, optimizer = make(KFAC(), Periodic(1, 1), Tikhonov(0.1))
    (x, y), *_ = batches()
    train(model, optimizer, x, y)
    state = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(state)
    weights = copy.deepcopy(model.state_dict())
    results = []
    for _ in range(2):
        other, resumed = make(KFAC(), Periodic(1, 1), Tikhonov(0.1))
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(other, resumed, x, y)
        assert_same(untouched, state)
        results.append(saved(other, resumed))
    assert_same(loaded(results[0]), loaded(results[1]))


def test_learning_rate_schedulers_and_groups_survive() -> None:
    model, optimizer = make(KFAC(), Periodic(1, 1), Tikhonov(0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for x, y in batches()[:4]:
        train(model, optimizer, x, y)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
    other, resumed = make(KFAC(), Periodic(1, 1), Tikhonov(0.1))
    resumed.load_state_dict(loaded(saved(model, optimizer))["optimizer"])
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert other is not model


def test_states_of_something_else_are_refused() -> None:
    model, optimizer = make(KFAC(), Periodic(1, 1), Tikhonov(0.1))
    (x, y), *_ = batches()
    train(model, optimizer, x, y)
    state = optimizer.state_dict()
    _, other_curvature = make(EKFAC(), Periodic(1, 1), Tikhonov(0.1))
    with pytest.raises(ConfigError, match=r"KFAC.*EKFAC"):
        other_curvature.load_state_dict(state)
    other_model = NaturalGradient(nn.Sequential(nn.Linear(4, 3)), KFAC())
    with pytest.raises(ConfigError, match="another model"):
        other_model.load_state_dict(state)
    other_shape = NaturalGradient(nn.Sequential(nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), KFAC())
    with pytest.raises(ConfigError, match="shape"):
        other_shape.load_state_dict(state)
    with pytest.raises(ConfigError, match="no state of NaturalGradient"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), 0.1).state_dict())
