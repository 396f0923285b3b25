"""What must leave no trace: hooks, gradients, random numbers, per-example memory, host synchronizations."""

from __future__ import annotations

import gc
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from natgrad_apps import (
    EKFAC,
    KFAC,
    Diagonal,
    Exact,
    FactoredTikhonov,
    Fisher,
    Info,
    KLClip,
    KLTrustRegion,
    LevenbergMarquardt,
    NaturalGradient,
    Periodic,
    Plain,
    Tikhonov,
)
from natgrad_apps.curvature import Curvature
from natgrad_apps.damping import Damping
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.steps import StepRule

CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]
every = pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
KINDS = ["mc", "exact", "empirical", "forward_only"]
BATCH = 37  # a size that no parameter, factor or likelihood has


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 1, 3, 3), torch.randint(3, (BATCH,))


def step(optimizer: NaturalGradient, model: nn.Module, x: Tensor, y: Tensor) -> Info:
    with optimizer.capture():
        logits = model(x)
        optimizer.observe(Categorical(logits), y if optimizer.preconditioner.fisher.kind == "empirical" else None)
    optimizer.zero_grad()
    F.cross_entropy(logits, y).backward()
    if optimizer.preconditioner.damping.adaptive:
        return optimizer.step(lambda: F.cross_entropy(model(x), y))
    return optimizer.step()


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def fail_inside(optimizer: NaturalGradient, model: nn.Module, x: Tensor) -> None:
    with optimizer.capture():
        model(x)
        raise ZeroDivisionError


def test_no_hook_outlives_the_capture() -> None:
    model, (x, _) = network(), batch()
    optimizer = NaturalGradient(model, KFAC())
    keys = list(model.state_dict())
    assert hooks(model) == 0
    with optimizer.capture():
        assert hooks(model) > 0
        optimizer.observe(Categorical(model(x)))
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError):
        fail_inside(optimizer, model, x)
    assert hooks(model) == 0
    assert all(not p._backward_hooks for p in model.parameters())
    assert list(model.state_dict()) == keys
    pickle.loads(pickle.dumps(model))  # an unpicklable closure in the model would fail here
    with optimizer.capture():  # the failed capture left nothing open
        optimizer.observe(Categorical(model(x)))


def test_no_hook_where_statistics_are_not_due() -> None:
    model, (x, y) = network(), batch()
    optimizer = NaturalGradient(model, KFAC(), refresh=Periodic(statistics_period=2))
    for due in (True, False, True, False):
        with optimizer.capture():
            assert (hooks(model) > 0) == due
            logits = model(x)
            optimizer.observe(Categorical(logits))
        F.cross_entropy(logits, y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@every
def test_observing_writes_no_gradient_and_leaves_the_graph_usable(curvature: Curvature, kind: str) -> None:
    model, (x, y) = network(), batch()
    optimizer = NaturalGradient(model, curvature, fisher=kind)
    F.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.zero_grad()
    with optimizer.capture():
        logits = model(x)
        optimizer.observe(Categorical(logits), y if kind == "empirical" else None)
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(logits, y).backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True) if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
@every
def test_global_random_states_are_untouched(curvature: Curvature, kind: str) -> None:
    model, (x, y) = network(), batch()
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    optimizer = NaturalGradient(model, curvature, fisher=Fisher(kind, samples=2 if kind == "mc" else 1))
    for _ in range(2):
        step(optimizer, model, x, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_samples_are_determined_by_the_seed() -> None:
    x, y = batch()
    results: list[Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = network()
        torch.manual_seed(17 * len(results))  # the global state must not matter
        optimizer = NaturalGradient(model, KFAC(), fisher=Fisher("mc", seed=seed))
        for _ in range(3):
            step(optimizer, model, x, y)
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def living() -> list[tuple[int, ...]]:
    """Shapes of all living tensors that have the batch size among their dimensions, or a multiple of it as a flattened one."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]  # isinstance would wake lazy objects of other packages
    return [tuple(t.shape) for t in found if any(d > 0 and d % BATCH == 0 for d in t.shape)]


@pytest.mark.parametrize("kind", KINDS)
@every
def test_nothing_of_an_example_outlives_the_step(curvature: Curvature, kind: str) -> None:
    model, (x, y) = network(), batch()
    optimizer = NaturalGradient(model, curvature, fisher=kind, step=KLTrustRegion(1e-3))
    for _ in range(2):
        info = step(optimizer, model, x, y)
    del x, y
    assert living() == []
    assert info.scale.isfinite()
    for block in optimizer.preconditioner.blocks.values():
        assert all(not t.requires_grad for t in (*block.state.moments.values(), *block.state.cache.values()))


def test_nothing_of_an_example_outlives_the_capture() -> None:
    """Also when a forward pass was never observed."""
    model, (x, y) = network(), batch()
    optimizer = NaturalGradient(model, KFAC())
    with optimizer.capture():
        model(x)
    del x, y
    assert living() == []


class Synchronizations(TorchDispatchMode):
    """Counts operations that make a device wait for the host."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in self.NAMES:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


# every rule and every damping once with each curvature and kind
RULES: list[tuple[StepRule, Damping]] = [
    (Plain(), Tikhonov(0.1)),
    (KLClip(1e-3), FactoredTikhonov(0.1)),
    (KLTrustRegion(1e-3), LevenbergMarquardt(0.1, period=1)),
]


@pytest.mark.parametrize(("rule", "damping"), RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", KINDS)
@every
def test_a_step_does_not_synchronize_with_the_host(
    curvature: Curvature, kind: str, rule: StepRule, damping: Damping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capture, observation, statistics and step. `branch_on_host` is false on every device but the CPU, where a decision is free."""
    model, (x, y) = network(), batch()
    fisher = Fisher(kind)
    optimizer = NaturalGradient(model, curvature, damping=damping, step=rule, fisher=fisher, refresh=Periodic(inverse_period=100))
    optimizer.preconditioner.branch_on_host = False
    # likewise, the range of targets is checked on the CPU only
    monkeypatch.setattr(Categorical, "check_targets", lambda *_: None)
    step(optimizer, model, x, y)  # the first refresh reads whether its factorizations succeeded
    with Synchronizations() as counter:
        for _ in range(2):
            step(optimizer, model, x, y)
    assert counter.found == []


@pytest.mark.parametrize("curvature", [KFAC(), Exact()], ids=lambda c: type(c).__name__)
def test_a_refresh_by_cholesky_synchronizes_once(curvature: Curvature) -> None:
    """Whether the factorizations of all layers succeeded is read as one flag."""
    model, (x, y) = network(), batch()
    optimizer = NaturalGradient(model, curvature, damping=FactoredTikhonov(0.1), refresh=Periodic(inverse_period=1))
    optimizer.preconditioner.branch_on_host = False
    step(optimizer, model, x, y)
    with Synchronizations() as counter:
        step(optimizer, model, x, y)
    assert len(counter.found) == 1
