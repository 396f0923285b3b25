"""The predicted divergence of the step that was taken, momentum included, recomputed densely: it never exceeds the radius."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, FactoredTikhonov, KLTrustRegion, NaturalGradient, Periodic, Tikhonov
from natgrad_apps.blocks import Block
from natgrad_apps.curvature import Curvature
from natgrad_apps.damping import Damping
from natgrad_apps.likelihoods import Categorical, Gaussian, Joint

CASES: list[tuple[Curvature, Damping, int]] = [
    (KFAC(), Tikhonov(1e-3), 1),
    (KFAC(), FactoredTikhonov(1e-3), 5),
    (KFAC(max_factor_size=3), FactoredTikhonov(1e-3), 5),
    (EKFAC(), Tikhonov(1e-3), 5),
    (Diagonal(), Tikhonov(1e-3), 5),
    (Exact(), Tikhonov(1e-3), 5),
]


def undamped(block: Block) -> Tensor:
    """The approximation of a block from its running averages, dense, in float64."""
    moments = {name: m.double() for name, m in block.state.moments.items()}
    if "F" in moments:
        return moments["F"]
    if "diagonal" in moments:
        return torch.diag(moments["diagonal"].flatten())
    if "s" in moments:
        q_a, q_g = (_block_diagonal(block.state.cache, f"vectors_{letter}") for letter in "AG")
        q = torch.kron(q_g, q_a)
        return q @ torch.diag(moments["s"].flatten()) @ q.mT
    return torch.kron(_block_diagonal(moments, "G"), _block_diagonal(moments, "A"))


def _block_diagonal(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    found: Tensor = torch.block_diag(
        *[t.double() for name, t in tensors.items() if name.startswith(prefix) and name[len(prefix) :].isdigit()]
    )
    return found


class ActorCritic(nn.Module):
    """Shared trunk, normalization (fallback), a Gaussian policy with a learned log-scale (known Fisher), and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh())
        self.policy, self.value = nn.Linear(6, 2), nn.Linear(6, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.policy(h), self.value(h).squeeze(-1)


def step_of(block: Block, before: dict[nn.Parameter, Tensor]) -> Tensor:
    """The step of a block as a vector in row-major order, in float64."""
    parts = [(p.detach().double() - before[p]) for p in block.parameters]
    if block.layer is None:
        return parts[0].flatten()
    return torch.cat([part.reshape(block.spec.d_out, -1) for part in parts], 1).flatten()


@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("curvature", "damping", "period"), CASES, ids=lambda c: type(c).__name__ if not isinstance(c, int) else str(c))
def test_predicted_divergence_never_exceeds_the_radius(curvature: Curvature, damping: Damping, period: int, dtype: torch.dtype) -> None:
    radius = 2e-3
    model = ActorCritic().to(dtype)
    optimizer = NaturalGradient(
        model, curvature, damping=damping, step=KLTrustRegion(radius), refresh=Periodic(2, period), lr=1.0, momentum=0.95
    )
    active = 0
    for t in range(50):
        x = torch.randn(16, 3, dtype=dtype)
        with optimizer.capture():
            mean, value = model(x)
            optimizer.observe(Joint(Gaussian(mean, log_std=model.log_std), Gaussian(value)))
        actions, returns = (mean + torch.randn_like(mean)).detach(), torch.randn_like(value) + t % 3
        advantages = torch.randn_like(value).detach()
        loss = -(Gaussian(mean, log_std=model.log_std).log_prob(actions) * advantages).mean() + F.mse_loss(value, returns)
        optimizer.zero_grad()
        loss.backward()
        before = {p: p.detach().double().clone() for p in model.parameters()}
        info = optimizer.step()
        total = 0.0
        for name, block in optimizer.preconditioner.blocks.items():
            d = step_of(block, before)
            contribution = (d @ undamped(block) @ d).item()
            # p + d is rounded to the dtype of p, which moves the recomputed form by about eps |p| / |d|
            assert info.quadratic[name].item() == pytest.approx(contribution, rel=1e-3 if dtype == torch.float32 else 1e-8, abs=1e-9)
            total += contribution
        assert total / 2 <= radius * (1 if dtype == torch.float64 else 1 + 1e-4)
        assert info.predicted_kl.item() <= radius
        assert info.predicted_kl.item() == pytest.approx(total / 2, rel=1e-3 if dtype == torch.float32 else 1e-8)
        active += int(info.scale.item() < 1)
    assert active > 10  # the bound was at work


def test_known_fisher_of_a_learned_scale_enters_the_trust_region() -> None:
    """2 for each log standard deviation, exactly, from the first step on."""
    model = ActorCritic().double()
    optimizer = NaturalGradient(model, Exact(), damping=1e-3, step=KLTrustRegion(1e-2), fisher="exact")
    x = torch.randn(16, 3, dtype=torch.float64)
    with optimizer.capture():
        mean, value = model(x)
        likelihood = Joint(Gaussian(mean, log_std=model.log_std), Gaussian(value))
        with pytest.warns(UserWarning, match=r"trunk\.1\.weight") as caught:
            optimizer.observe(likelihood)
    assert "log_std" not in str(caught[0].message)
    likelihood.log_prob((mean.detach() + 1, value.detach())).mean().backward()
    info = optimizer.step()
    diagonal = optimizer.preconditioner.blocks["log_std"].state.moments["diagonal"]
    assert torch.equal(diagonal.flatten(), torch.full((2,), 2.0, dtype=torch.float64))
    d = model.log_std.detach()
    assert info.quadratic["log_std"].item() == pytest.approx(2 * d.square().sum().item(), rel=1e-12)


def test_categorical_policy_and_its_measured_divergence() -> None:
    """Small radius: the measured divergence of a linear softmax policy approaches the predicted one (exact curvature, one layer)."""
    ratios = []
    for radius in (1e-2, 1e-4):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4)).double()
        x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(4, (40,))
        optimizer = NaturalGradient(model, Exact(), damping=1e-6, step=KLTrustRegion(radius), fisher="exact", lr=10.0)
        with optimizer.capture():
            likelihood = Categorical(model(x))
            optimizer.observe(likelihood)
        F.cross_entropy(likelihood.outputs[0], y).backward()
        info = optimizer.step()
        assert info.predicted_kl.item() == pytest.approx(radius, rel=1e-5)
        ratios.append(likelihood.detach().kl(Categorical(model(x))).mean().item() / info.predicted_kl.item())
    # the relative remainder is of the order of the step, the square root of the radius: ten times smaller
    assert abs(ratios[1] - 1) < 0.2 * abs(ratios[0] - 1) + 1e-6
    assert abs(ratios[1] - 1) < 0.02
