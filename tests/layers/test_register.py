"""Adapters that an application registers: before the core's own, with parameters of children and every argument of the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Fisher, Periodic, Preconditioner
from natgrad_apps.layers.base import Arguments, Geometry
from natgrad_apps.layers.discover import adapter_for, register
from natgrad_apps.layers.linear import LinearAdapter, LinearInputs
from natgrad_apps.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("float64")


class Scaled(nn.Module):
    """``y = s (x W^T) + b`` with the weight in a child and the factors ``s: [N]`` an argument."""

    def __init__(self, d_in: int, d_out: int, *, plain: bool = False) -> None:
        super().__init__()
        self.inner, self.bias, self.plain = nn.Linear(d_in, d_out, bias=False), nn.Parameter(torch.zeros(d_out)), plain

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        result: Tensor = scale.unsqueeze(1) * self.inner(x) + self.bias
        return result


@register
class ScaledAdapter(LinearAdapter):
    module_types: ClassVar[tuple[type[nn.Module], ...]] = (Scaled,)
    input_name: ClassVar[str] = "x"

    def covers(self, module: nn.Module) -> bool:
        assert isinstance(module, Scaled)
        return not module.plain

    def geometry(self, module: nn.Module) -> Geometry:
        assert isinstance(module, Scaled)
        return Geometry(module.inner.in_features, module.inner.out_features)

    def weight(self, module: nn.Module) -> object:
        assert isinstance(module, Scaled)
        return module.inner.weight

    def children(self, module: nn.Module) -> Sequence[nn.Module]:
        assert isinstance(module, Scaled)
        return (module.inner,)

    def call_inputs(self, module: nn.Module, x: Tensor, arguments: Arguments) -> LinearInputs:
        return LinearInputs((arguments.get(1, "scale").unsqueeze(1) * x).unsqueeze(1))


def fed(layer: Scaled, x: Tensor, scale: Tensor) -> Preconditioner:
    model = nn.ModuleDict({"layer": layer})
    preconditioner = Preconditioner(model, KFAC(), damping=0.5, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with preconditioner.capture():
        preconditioner.observe(Gaussian(layer(x=x, scale=scale)))
    preconditioner.update()
    return preconditioner


def test_weight_of_a_child_and_arguments_by_name() -> None:
    layer, x, scale = Scaled(4, 3), torch.randn(6, 4), torch.rand(6)
    preconditioner = fed(layer, x, scale)
    assert list(preconditioner.blocks) == ["layer"]
    assert preconditioner.blocks["layer"].parameters == (layer.inner.weight, layer.bias)
    rows = torch.cat([scale.unsqueeze(1) * x, torch.ones(6, 1)], 1)
    torch.testing.assert_close(preconditioner.blocks["layer"].state.moments["A0"], rows.mT @ rows / 6, rtol=1e-12, atol=1e-12)
    matrix = torch.randn(3, 5)
    values = preconditioner.from_blocks({"layer": matrix})
    assert torch.equal(values[preconditioner.blocks["layer"].parameters[0]], matrix[:, :4])
    assert torch.equal(values[layer.bias], matrix[:, 4])


@pytest.mark.filterwarnings("ignore::natgrad_apps.errors.UnsupportedLayerWarning")
def test_a_module_that_the_adapter_declines() -> None:
    layer = Scaled(4, 3, plain=True)
    assert adapter_for(layer) is None
    assert list(fed(layer, torch.randn(6, 4), torch.rand(6)).blocks) == ["layer.inner", "layer.bias"]


def test_registering_twice_changes_nothing() -> None:
    before = adapter_for(Scaled(2, 2))
    assert register(ScaledAdapter) is ScaledAdapter
    assert adapter_for(Scaled(2, 2)) is before
