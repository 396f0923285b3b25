"""NaN and infinity in gradients or statistics: the step is skipped, counted and reported, and the state is kept."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, KLClip, KLTrustRegion, NaturalGradient, Periodic, Plain, Preconditioner
from natgrad_apps.curvature import Curvature
from natgrad_apps.errors import NonFiniteWarning
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.steps import StepRule

CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]
every = pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
bad = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
hosts = pytest.mark.parametrize("on_host", [True, False], ids=["host", "device"])


def setting(
    curvature: Curvature, rule: StepRule | None = None, *, on_host: bool = True
) -> tuple[nn.Module, NaturalGradient, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    rule = KLTrustRegion(1e-2) if rule is None else rule
    optimizer = NaturalGradient(model, curvature, damping=0.1, step=rule, refresh=Periodic(inverse_period=2), momentum=0.9)
    optimizer.preconditioner.branch_on_host = on_host
    return model, optimizer, torch.randn(8, 4), torch.randint(3, (8,))


def observe(optimizer: NaturalGradient, model: nn.Module, x: Tensor) -> None:
    with optimizer.capture():
        optimizer.observe(Categorical(model(x)))


def backward(optimizer: NaturalGradient, model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()


def kept(optimizer: NaturalGradient, model: nn.Module) -> dict[str, Any]:
    """Copies of everything that a skipped step must keep."""
    buffer = io.BytesIO()
    state = optimizer.state_dict()
    blocks = {
        name: {"moments": entry["moments"], "count": entry["count"], "cache": entry["cache"]}
        for name, entry in state["curvature"]["blocks"].items()
    }
    torch.save({"blocks": blocks, "velocity": state["state"], "model": model.state_dict()}, buffer)
    buffer.seek(0)
    result: dict[str, Any] = torch.load(buffer, weights_only=True)
    return result


def assert_same(first: Any, second: Any, *, skip: tuple[str, ...] = ()) -> None:
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert set(first) == set(second)
        for key in first:
            if key not in skip:
                assert_same(first[key], second[key], skip=skip)
    else:
        assert first == second


@every
@bad
@hosts
def test_bad_gradient(curvature: Curvature, value: float, on_host: bool) -> None:
    model, optimizer, x, y = setting(curvature, on_host=on_host)
    for _ in range(3):
        observe(optimizer, model, x)
        backward(optimizer, model, x, y)
        optimizer.step()
    before = kept(optimizer, model)
    observe(optimizer, model, x)
    backward(optimizer, model, x, y)
    weight = model.get_submodule("2").weight
    assert isinstance(weight, Tensor)
    assert weight.grad is not None
    weight.grad[1, 2] = value
    if on_host:
        with pytest.warns(NonFiniteWarning, match="step 4 was skipped"):
            info = optimizer.step()
    else:
        info = optimizer.step()
    assert info.skipped
    assert info.skipped_steps == 1
    assert info.scale == 0
    # step 4 (index 3) is not a refresh
    assert_same(before, kept(optimizer, model))
    observe(optimizer, model, x)
    backward(optimizer, model, x, y)
    info = optimizer.step()
    assert not info.skipped
    assert info.skipped_steps == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(before["model"]["2.weight"], weight)


@every
@bad
@hosts
@pytest.mark.parametrize("first", [True, False], ids=["first_step", "later_step"])
def test_bad_statistics(curvature: Curvature, value: float, on_host: bool, first: bool) -> None:
    """The statistics come from another forward pass than the gradient, which is finite."""
    model, optimizer, x, y = setting(curvature, on_host=on_host)
    if not first:
        for _ in range(3):
            observe(optimizer, model, x)
            backward(optimizer, model, x, y)
            optimizer.step()
    before = kept(optimizer, model)
    poisoned = x.clone()
    poisoned[3, 1] = value
    observe(optimizer, model, poisoned)
    backward(optimizer, model, x, y)
    if on_host:
        with pytest.warns(NonFiniteWarning, match="was skipped"):
            info = optimizer.step()
    else:
        info = optimizer.step()
    assert info.skipped
    assert info.skipped_steps == 1
    after = kept(optimizer, model)
    assert_same(before["model"], after["model"])
    if not first:
        assert_same(before, after)
    for entry in after["blocks"].values():
        assert entry["count"] == (0 if first else 3)
    observe(optimizer, model, x)
    backward(optimizer, model, x, y)
    info = optimizer.step()
    assert not info.skipped
    assert all(p.isfinite().all() for p in model.parameters())
    for name, block in optimizer.preconditioner.blocks.items():
        assert all(m.isfinite().all() for m in block.state.moments.values()), name


@every
def test_first_batch_after_a_bad_one_counts_as_the_first(curvature: Curvature) -> None:
    """Statistics of a run whose first batch was rejected equal those of a run without it."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, found = torch.randn(8, 4), []
    for poison in (True, False):
        core = Preconditioner(model, curvature, damping=0.1, fisher="exact")
        for batch in [torch.full_like(x, math.nan), x] if poison else [x]:
            with core.capture():
                core.observe(Categorical(model(batch)))
            with pytest.warns(NonFiniteWarning) if batch.isnan().any() else contextlib.nullcontext():
                core.update()
        found.append(core)
    bad_first, clean = found
    for name, block in clean.blocks.items():
        assert bad_first.blocks[name].state.count == block.state.count
        # dense forms, because the first basis of EKFAC may differ; float32 and a condition number of about 10
        matrices = [core.blocks[name].curvature.to_dense(core.blocks[name].state) for core in found]
        torch.testing.assert_close(matrices[0], matrices[1], rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("rule", [Plain(), KLClip(1e-2), KLTrustRegion(1e-2)], ids=lambda r: type(r).__name__)
@hosts
def test_step_that_overflows_is_skipped_as_a_whole(curvature: Curvature, rule: StepRule, on_host: bool) -> None:
    """A finite gradient whose step has no finite norm in float32: a step that is reported as skipped must not be taken, and is counted."""
    model, optimizer, x, y = setting(curvature, rule, on_host=on_host)
    for _ in range(2):
        observe(optimizer, model, x)
        backward(optimizer, model, x, y)
        optimizer.step()
    before = kept(optimizer, model)
    observe(optimizer, model, x)
    backward(optimizer, model, x, y)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.fill_(3e18)  # its norm is finite, the square of the step is not
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        info = optimizer.step()
    after = kept(optimizer, model)
    moved = not all(torch.equal(p, after["model"][name]) for name, p in before["model"].items())
    assert all(p.isfinite().all() for p in model.parameters())
    assert moved == (not info.skipped)
    assert info.skipped_steps == int(info.skipped)
    if info.skipped:
        assert_same(before["velocity"], after["velocity"])
        assert any(issubclass(w.category, NonFiniteWarning) for w in caught) == on_host
    for _ in range(2):  # and training goes on
        observe(optimizer, model, x)
        backward(optimizer, model, x, y)
        assert not optimizer.step().skipped
