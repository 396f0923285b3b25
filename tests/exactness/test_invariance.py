"""Invariance of the step under invertible affine maps of a layer's input and output, as damping goes to 0.

Martens and Grosse 2015, theorem 1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Exact, Fisher, NaturalGradient, Periodic, Plain, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("float64")


class Affine(nn.Module):
    """A fixed invertible affine map."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(size) + 0.4 * torch.randn(size, size))
        self.register_buffer("shift", torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.matrix, Tensor)
        assert isinstance(self.shift, Tensor)
        return x @ self.matrix.mT + self.shift


class Reparametrized(nn.Module):
    """A linear layer between two fixed affine maps: the same functions, other coordinates for the input, the output and so the weights."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.before, self.after = Affine(original.in_features), Affine(original.out_features)
        self.linear = nn.Linear(original.in_features, original.out_features)
        assert isinstance(self.before.matrix, Tensor)
        assert isinstance(self.before.shift, Tensor)
        assert isinstance(self.after.matrix, Tensor)
        assert isinstance(self.after.shift, Tensor)
        inner, outer = torch.linalg.inv(self.before.matrix), torch.linalg.inv(self.after.matrix)
        with torch.no_grad():
            # after(L(before(a))) = W a + b  with  L.weight = outer W inner,  L.bias = outer (b - shift_after) - L.weight shift_before
            self.linear.weight.copy_(outer @ original.weight @ inner)
            self.linear.bias.copy_(outer @ (original.bias - self.after.shift) - self.linear.weight @ self.before.shift)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.linear(self.before(x)))
        return y


def networks() -> tuple[nn.Module, nn.Module]:
    """The same function in two parametrizations. The output layer keeps its own output coordinates: the likelihood is in them."""
    original = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    layers = [layer for layer in original if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(2)  # far from linear, so that every factor is regular
    changed = nn.Sequential(Reparametrized(layers[0]), nn.Tanh(), Reparametrized(layers[1]), nn.Tanh(), Reparametrized(layers[2]))
    return original, changed


def outputs_after_a_step(model: nn.Module, x: Tensor, y: Tensor, curvature: Curvature, damping: float) -> Tensor:
    optimizer = NaturalGradient(
        model,
        curvature,
        damping=Tikhonov(damping),
        step=Plain(),
        fisher=Fisher("exact"),
        refresh=Periodic(inverse_period=1),
        lr=0.5,
        momentum=0.0,
    )
    with optimizer.capture():
        mean = model(x)
        optimizer.observe(Gaussian(mean))
    (-Gaussian(mean).log_prob(y).mean()).backward()
    optimizer.step()
    outputs: Tensor = model(x)
    return outputs.detach()


@pytest.mark.parametrize("curvature", [KFAC(), Exact()], ids=["kfac", "exact"])
def test_step_is_invariant_as_damping_goes_to_zero(curvature: Curvature) -> None:
    x, y = torch.randn(60, 3), torch.randn(60, 3)
    state = torch.get_rng_state()
    differences = []
    for damping in (1e-6, 1e-8, 1e-10):
        torch.set_rng_state(state)
        original, changed = networks()
        torch.testing.assert_close(original(x), changed(x), rtol=1e-10, atol=1e-10)
        before = original(x).detach()
        plain = outputs_after_a_step(original, x, y, curvature, damping)
        other = outputs_after_a_step(changed, x, y, curvature, damping)
        differences.append(((plain - other).norm() / (plain - before).norm()).item())
    # linear in the damping until rounding
    assert differences[1] < 0.05 * differences[0]
    assert differences[2] < 0.05 * differences[1]
    assert differences[2] < 1e-4


def test_gradient_descent_is_not_invariant() -> None:
    """The contrast: a damping far above the curvature makes the step the plain gradient, which depends on the coordinates."""
    x, y = torch.randn(60, 3), torch.randn(60, 3)
    original, changed = networks()
    before = original(x).detach()
    plain = outputs_after_a_step(original, x, y, KFAC(), 1e2)
    other = outputs_after_a_step(changed, x, y, KFAC(), 1e2)
    assert (plain - other).norm() > 0.1 * (plain - before).norm()
