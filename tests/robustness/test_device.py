"""On a CUDA device: no step waits for the host, results agree with the CPU, and a bad step is rejected without a host decision."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, FactoredTikhonov, Fisher, Info, KLTrustRegion, NaturalGradient, Periodic
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
CURVATURES: list[Curvature] = [KFAC(), EKFAC(), Diagonal(), Exact()]
every = pytest.mark.parametrize("curvature", CURVATURES, ids=lambda c: type(c).__name__)
kinds = pytest.mark.parametrize("kind", ["mc", "exact", "empirical", "forward_only"])


@pytest.fixture
def no_synchronization() -> Iterator[None]:
    """Any synchronization is an error; taken back after the test."""
    yield
    torch.cuda.set_sync_debug_mode("default")


class ActorCritic(nn.Module):
    """A convolution, and two heads over it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Flatten())
        self.policy, self.value = nn.Linear(12, 4), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.policy(h), self.value(h).squeeze(-1)


def build(curvature: Curvature, kind: str, model: nn.Module, period: int = 100) -> NaturalGradient:
    return NaturalGradient(
        model,
        curvature,
        damping=FactoredTikhonov(0.1),
        step=KLTrustRegion(1e-2),
        refresh=Periodic(inverse_period=period),
        fisher=Fisher(kind),
    )


def step(optimizer: NaturalGradient, model: nn.Module, x: Tensor, actions: Tensor, returns: Tensor) -> Info:
    with optimizer.capture():
        logits, value = model(x)
        likelihood = Joint(Categorical(logits), Gaussian(value))
        optimizer.observe(likelihood, (actions, returns) if optimizer.preconditioner.fisher.kind == "empirical" else None)
    optimizer.zero_grad()
    (F.cross_entropy(logits, actions) + F.mse_loss(value, returns)).backward()
    return optimizer.step()


def batch(device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, returns = torch.randn(16, 1, 3, 3, generator=generator), torch.randn(16, generator=generator)
    actions = torch.randint(4, (16,), generator=generator)
    return x.to(device), actions.to(device), returns.to(device)


@kinds
@every
@pytest.mark.usefixtures("no_synchronization")
def test_a_step_does_not_synchronize(curvature: Curvature, kind: str) -> None:
    model, data = ActorCritic().to(DEVICE), batch(DEVICE)
    optimizer = build(curvature, kind, model)
    step(optimizer, model, *data)  # library handles, and the first refresh
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        info = step(optimizer, model, *data)
    torch.cuda.set_sync_debug_mode("default")
    assert info.scale.device.type == DEVICE
    assert not info.skipped.item()


@pytest.mark.parametrize("kind", ["exact", "forward_only"])
@every
def test_steps_agree_with_the_cpu(curvature: Curvature, kind: str) -> None:
    """float64, refreshed at every step; the random signs of the exact Fisher cancel with one term for each example."""
    models = [ActorCritic().double()]
    models.append(copy.deepcopy(models[0]).to(DEVICE))
    for model, device in zip(models, ("cpu", DEVICE), strict=True):
        optimizer = build(curvature, kind, model, period=1)
        x, actions, returns = batch(device)
        for _ in range(3):
            step(optimizer, model, x.double(), actions, returns.double())
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-8, atol=1e-9)


@every
@pytest.mark.parametrize("first", [True, False], ids=["first_step", "later_step"])
def test_a_bad_batch_is_rejected(curvature: Curvature, first: bool) -> None:
    model, (x, actions, returns) = ActorCritic().to(DEVICE), batch(DEVICE)
    optimizer = build(curvature, "mc", model)
    if not first:
        step(optimizer, model, x, actions, returns)
    before = copy.deepcopy(model.state_dict())
    poisoned = x.clone()
    poisoned[3] = math.nan
    info = step(optimizer, model, poisoned, actions, returns)
    assert info.skipped.item()
    assert info.skipped_steps.item() == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    info = step(optimizer, model, x, actions, returns)
    assert not info.skipped.item()
    assert all(p.isfinite().all() for p in model.parameters())


@every
def test_bf16_autocast_trains(curvature: Curvature) -> None:
    model, (x, actions, returns) = ActorCritic().to(DEVICE), batch(DEVICE)
    optimizer, losses = build(curvature, "mc", model, period=2), []
    for _ in range(10):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            with optimizer.capture():
                logits, value = model(x)
                optimizer.observe(Joint(Categorical(logits), Gaussian(value)))
            loss = F.cross_entropy(logits, actions) + F.mse_loss(value.float(), returns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for block in optimizer.preconditioner.blocks.values():
        assert all(moment.dtype == torch.float32 for moment in block.state.moments.values())
