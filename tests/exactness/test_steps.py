"""Steps of the optimizer against dense solves and hand calculations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import (
    KFAC,
    Exact,
    FactoredTikhonov,
    KLClip,
    KLTrustRegion,
    LevenbergMarquardt,
    NaturalGradient,
    Periodic,
    Plain,
    Tikhonov,
)
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Categorical, Gaussian
from natgrad_apps.types import Info
from tests._dense import categorical_root, fisher, gaussian_root, layer_jacobian, to_matrix

pytestmark = pytest.mark.usefixtures("float64")


def flat(layer: nn.Linear) -> Tensor:
    return to_matrix(layer, layer.weight, layer.bias).detach().flatten()


def flat_gradient(layer: nn.Linear) -> Tensor:
    assert layer.weight.grad is not None
    return to_matrix(layer, layer.weight.grad, None if layer.bias is None else layer.bias.grad).flatten()


def regression() -> tuple[nn.Sequential, nn.Linear, Tensor, Tensor]:
    layer = nn.Linear(4, 2)
    return nn.Sequential(layer), layer, torch.randn(12, 4), torch.randn(12, 2)


def take(optimizer: NaturalGradient, model: nn.Module, x: Tensor, y: Tensor) -> Info:
    with optimizer.capture():
        mean = model(x)
        optimizer.observe(Gaussian(mean))
    optimizer.zero_grad()
    (-Gaussian(mean).log_prob(y).mean()).backward()
    return optimizer.step()


@pytest.mark.parametrize("curvature", [KFAC(), Exact()], ids=["kfac", "exact"])
@pytest.mark.parametrize("damping", [0.25, 1e-9])
def test_one_linear_layer_takes_the_dense_gauss_newton_step(curvature: Curvature, damping: float) -> None:
    model, layer, x, y = regression()
    optimizer = NaturalGradient(model, curvature, damping=damping, fisher="exact", lr=1.0, momentum=0.0)
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, layer), gaussian_root(outputs))
    before = flat(layer)
    take(optimizer, model, x, y)
    expected = before - torch.linalg.solve(F + damping * torch.eye(len(F)), flat_gradient(layer))
    # at the smaller damping the condition number is about 1e2, since F itself is regular
    torch.testing.assert_close(flat(layer), expected, rtol=1e-8, atol=1e-8)
    if damping < 1e-6:  # one full step is the least-squares solution
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1)], 1), y).solution.mT
        torch.testing.assert_close(flat(layer), solution.flatten(), rtol=1e-6, atol=1e-6)


def test_softmax_regression_takes_the_dense_newton_step() -> None:
    """Cross-entropy of a linear model: the Fisher is the Hessian, so the exact curvature takes Newton's step."""
    layer = nn.Linear(3, 4)
    model, x, y = nn.Sequential(layer), torch.randn(15, 3), torch.randint(4, (15,))
    optimizer = NaturalGradient(model, Exact(), damping=Tikhonov(1e-3), fisher="exact", lr=1.0, momentum=0.0)
    loss = nn.functional.cross_entropy(model(x), y)
    weight, bias = torch.autograd.grad(loss, [layer.weight, layer.bias], create_graph=True)
    gradient = to_matrix(layer, weight, bias).flatten()
    rows = []
    for g in gradient:
        weight, bias = torch.autograd.grad(g, [layer.weight, layer.bias], retain_graph=True)
        rows.append(to_matrix(layer, weight, bias).flatten())
    hessian, before = torch.stack(rows), flat(layer)
    outputs = model(x)
    torch.testing.assert_close(hessian, fisher(layer_jacobian(outputs, layer), categorical_root(outputs)), rtol=1e-10, atol=1e-12)
    with optimizer.capture():
        optimizer.observe(Categorical(model(x)))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    expected = before - torch.linalg.solve(hessian + 1e-3 * torch.eye(len(hessian)), gradient.detach())
    torch.testing.assert_close(flat(layer), expected, rtol=1e-8, atol=1e-8)


def test_momentum_and_weight_decay_by_hand() -> None:
    """``d_t = m d_(t-1) - lr (F + lambda)^-1 (g + w theta)`` over three steps, with the averaged Fisher (a plain mean)."""
    model, layer, x, y = regression()
    lr, momentum, decay, damping = 0.3, 0.8, 0.05, 0.5
    optimizer = NaturalGradient(
        model,
        Exact(),
        damping=damping,
        fisher="exact",
        refresh=Periodic(inverse_period=1),
        lr=lr,
        momentum=momentum,
        weight_decay=decay,
    )
    velocity, fishers = torch.zeros(10), []
    for t in range(3):
        batch = x * (1 + t)
        outputs = model(batch)
        fishers.append(fisher(layer_jacobian(outputs, layer), gaussian_root(outputs)))
        F = torch.stack(fishers).mean(0)
        before = flat(layer)
        take(optimizer, model, batch, y)
        direction = torch.linalg.solve(F + damping * torch.eye(10), flat_gradient(layer) + decay * before)
        velocity = momentum * velocity - lr * direction
        torch.testing.assert_close(flat(layer), before + velocity, rtol=1e-9, atol=1e-9)


def test_weights_of_every_objective_decay_once() -> None:
    """A parameter's decay goes with the first objective that has a gradient for it; zero losses leave the decay alone."""
    trunk, heads = nn.Linear(3, 2), {"actor": nn.Linear(2, 2), "critic": nn.Linear(2, 1)}
    model = nn.ModuleDict({"trunk": trunk, **heads}).double()
    step = {"actor": "plain", "critic": "plain"}
    optimizer = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", step=step, lr=0.1, momentum=0.0, weight_decay=0.2)
    with optimizer.capture():
        hidden = trunk(torch.randn(8, 3, dtype=torch.float64))
        outputs = {name: head(hidden) for name, head in heads.items()}
        optimizer.observe(Gaussian(torch.cat(list(outputs.values()), 1)))
    before = {name: flat(layer) for name, layer in (("trunk", trunk), *heads.items())}
    for name, output in outputs.items():
        (0 * output.sum()).backward(retain_graph=True)
        optimizer.collect(name)
    optimizer.step()
    for name, layer in (("trunk", trunk), *heads.items()):
        shape = (layer.out_features, layer.in_features + 1)
        decay = optimizer.preconditioner.multiply_power({name: 0.2 * before[name].view(shape)}, -1)[name]
        assert decay.norm() > 0
        torch.testing.assert_close(flat(layer) - before[name], -0.1 * decay.flatten(), rtol=1e-8, atol=1e-10)


def test_groups_have_their_own_options() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    model, x, y = nn.Sequential(first, nn.Tanh(), second), torch.randn(8, 3), torch.randn(8, 2)
    groups = [{"params": list(first.parameters()), "lr": 0.0}, {"params": list(second.parameters()), "lr": 0.7, "weight_decay": 0.1}]
    optimizer = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", groups=groups, momentum=0.0)
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, second), gaussian_root(outputs))
    frozen, before = flat(first), flat(second)
    take(optimizer, model, x, y)
    assert torch.equal(flat(first), frozen)
    direction = torch.linalg.solve(F + 0.5 * torch.eye(len(F)), flat_gradient(second) + 0.1 * before)
    torch.testing.assert_close(flat(second), before - 0.7 * direction, rtol=1e-9, atol=1e-9)


def test_trust_region_scales_the_step_onto_its_boundary() -> None:
    """``nu = sqrt(2 radius / d^T F d)`` with the undamped F, the momentum inside; ``nu = 1`` inside the region."""
    model, layer, x, y = regression()
    radius = 1e-3
    optimizer = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", step=KLTrustRegion(radius), lr=1.0, momentum=0.9)
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, layer), gaussian_root(outputs))
    velocity = torch.zeros(10)
    for _ in range(3):
        before = flat(layer)
        info = take(optimizer, model, x, y)  # the Fisher of a linear Gaussian model does not depend on the weights
        step = 0.9 * velocity - torch.linalg.solve(F + 0.5 * torch.eye(10), flat_gradient(layer))
        scale = min(1.0, math.sqrt(2 * radius / (step @ F @ step).item()))
        assert scale < 1
        velocity = flat(layer) - before
        torch.testing.assert_close(velocity, scale * step, rtol=1e-5, atol=1e-9)
        assert (velocity @ F @ velocity / 2).item() <= radius
        assert info.predicted_kl.item() == pytest.approx((velocity @ F @ velocity / 2).item(), rel=1e-9)
        assert info.scale.item() == pytest.approx(scale, rel=1e-5)
        assert sum(q.item() for q in info.quadratic.values()) == pytest.approx(2 * info.predicted_kl.item(), rel=1e-12)
    wide = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", step=KLTrustRegion(1e6), lr=1.0, momentum=0.0)
    assert take(wide, model, x, y).scale.item() == 1.0


def test_predicted_divergence_is_the_measured_one_for_a_linear_gaussian_model() -> None:
    """There the divergence is exactly quadratic."""
    model, _, x, y = regression()
    optimizer = NaturalGradient(model, KFAC(), damping=0.5, fisher="exact", step=KLTrustRegion(1e-2), lr=1.0)
    before = Gaussian(model(x)).detach()
    info = take(optimizer, model, x, y)
    assert before.kl(Gaussian(model(x))).mean().item() == pytest.approx(info.predicted_kl.item(), rel=1e-9)


def test_clip_uses_the_damped_form_before_momentum() -> None:
    """``nu = min(1, sqrt(kappa / (lr^2 <P, g>)))``."""
    model, layer, x, y = regression()
    optimizer = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", step=KLClip(1e-3), lr=0.4, momentum=0.9)
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, layer), gaussian_root(outputs))
    velocity = torch.zeros(10)
    for _ in range(3):
        before = flat(layer)
        info = take(optimizer, model, x, y)
        gradient = flat_gradient(layer)
        P = torch.linalg.solve(F + 0.5 * torch.eye(10), gradient)
        scale = min(1.0, math.sqrt(1e-3 / (0.16 * (P @ gradient).item())))
        velocity = 0.9 * velocity - 0.4 * scale * P
        torch.testing.assert_close(flat(layer), before + velocity, rtol=1e-8, atol=1e-9)
        assert info.scale.item() == pytest.approx(scale, rel=1e-9)
        # reported: half the damped form of the step without its momentum, kappa / 2 where the clip acts
        assert info.predicted_kl.item() == pytest.approx(0.5 * scale**2 * 0.16 * (P @ gradient).item(), rel=1e-9)


@pytest.mark.parametrize("kappa", [1e-3, 10.0], ids=["clipped", "free"])
def test_clip_with_a_smaller_rate_is_the_rule_of_baselines(kappa: float) -> None:
    """``d = m d - lr (1 - m) nu P``, ``nu = min(1, sqrt(kappa / (lr^2 <P, g>)))``, by ``lr (1 - m)`` and ``kappa (1 - m)^2``."""
    model, layer, x, y = regression()
    lr, m = 0.4, 0.9
    rule = KLClip(kappa * (1 - m) ** 2)
    optimizer = NaturalGradient(model, Exact(), damping=0.5, fisher="exact", step=rule, lr=lr * (1 - m), momentum=m)
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, layer), gaussian_root(outputs))
    velocity = torch.zeros(10)
    for _ in range(3):
        before = flat(layer)
        take(optimizer, model, x, y)
        gradient = flat_gradient(layer)
        P = torch.linalg.solve(F + 0.5 * torch.eye(10), gradient)
        nu = min(1.0, math.sqrt(kappa / (lr**2 * (P @ gradient).item())))
        assert (nu < 1) == (kappa < 1)
        velocity = m * velocity - lr * (1 - m) * nu * P
        torch.testing.assert_close(flat(layer), before + velocity, rtol=1e-8, atol=1e-9)


def test_plain_step_reports_norms_and_damping() -> None:
    model, layer, x, y = regression()
    optimizer = NaturalGradient(model, KFAC(), damping=FactoredTikhonov(0.25), fisher="exact", step=Plain(), lr=0.1)
    before = flat(layer)
    info = take(optimizer, model, x, y)
    assert info.damping.item() == 0.25
    assert info.skipped.item() == 0
    assert info.gradient_norms["0"].item() == pytest.approx(flat_gradient(layer).norm().item(), rel=1e-12)
    assert info.update_norms["0"].item() == pytest.approx((flat(layer) - before).norm().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("value", "lr", "factor"), [(0.5, 1.0, 0.9), (6.0, 3.0, 1 / 0.9), (0.1, None, 1.0)], ids=["down", "up", "unchanged"]
)
def test_levenberg_marquardt_follows_the_ratio_of_decreases(value: float, lr: float | None, factor: float) -> None:
    """Linear Gaussian model: the loss changes by ``g^T d + 1/2 d^T F d`` exactly; predicted is ``g^T d + 1/2 d^T (F + lambda I) d``."""
    model, layer, x, y = regression()
    outputs = model(x)
    F = fisher(layer_jacobian(outputs, layer), gaussian_root(outputs))
    if lr is None:
        # d = -lr (F + lambda)^-1 g; with F about c the ratio is (1 - lr s) / (1 - lr / 2), s = c / (2 (c + lambda)): solved for 1/2
        c = F.diagonal().mean().item()
        lr = 0.5 / (c / (2 * (c + value)) - 0.25)
    optimizer = NaturalGradient(model, Exact(), damping=LevenbergMarquardt(value, omega=0.9, period=1), fisher="exact", lr=lr, momentum=0.0)
    before = flat(layer)
    with optimizer.capture():
        mean = model(x)
        optimizer.observe(Gaussian(mean))
    (-Gaussian(mean).log_prob(y).mean()).backward()
    gradient = flat_gradient(layer)
    optimizer.step(lambda: -Gaussian(model(x)).log_prob(y).mean())
    d = flat(layer) - before
    actual = gradient @ d + d @ F @ d / 2
    predicted = gradient @ d + d @ (F + value * torch.eye(10)) @ d / 2
    ratio = (actual / predicted).item()
    assert factor == (0.9 if ratio > 0.75 else 1 / 0.9 if ratio < 0.25 else 1.0), f"the case misses its branch, ratio {ratio}"
    assert optimizer.preconditioner.damping_value.item() == pytest.approx(value * factor, rel=1e-6)


def test_adaptive_damping_needs_a_closure() -> None:
    model, _, x, y = regression()
    optimizer = NaturalGradient(model, Exact(), damping=LevenbergMarquardt(1.0), fisher="exact")
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        take(optimizer, model, x, y)
