"""Which module becomes which block, for every convolution that the application names."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GATConv, GATv2Conv, GCN2Conv, GCNConv, GINConv, Linear, SAGEConv, SGConv
from torch_geometric.utils import to_torch_sparse_tensor

from natgrad_apps import KFAC, Exact, Fisher, NaturalGradient, Periodic, Preconditioner
from natgrad_apps.errors import ConfigError, ShapeError, UnsupportedLayerError
from natgrad_apps.graphs import coverage, describe, factorization
from natgrad_apps.graphs.convolutions import FixedGCNConv
from natgrad_apps.likelihoods import Gaussian
from tests._dense import gaussian_root
from tests._feed import dense
from tests.graphs._models import OneLayer, TwoLayers, dense_adjacency, exact_block, small_graph

pytestmark = pytest.mark.usefixtures("float64")


class Wrapped(nn.Module):
    """One convolution under the name ``last``."""

    def __init__(self, last: nn.Module, prepare: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (x,)) -> None:
        super().__init__()
        self.last, self._prepare = last, prepare

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        result: Tensor = self.last(*self._prepare(x), edge_index)
        return result


def fed(model: nn.Module, edge_index: Any, *, strict: bool = False, x: Tensor | None = None) -> Preconditioner:
    preconditioner = Preconditioner(model, Exact(), damping=0.5, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1), strict=strict)
    with preconditioner.capture():
        preconditioner.observe(Gaussian(model(torch.randn(5, 4) if x is None else x, edge_index)))
    preconditioner.update()
    return preconditioner


@pytest.mark.parametrize(
    ("conv", "names"),
    [
        (lambda: SAGEConv(4, 3), ["last.lin_l", "last.lin_r"]),
        (lambda: GINConv(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))), ["last.nn.0", "last.nn.2"]),
        (lambda: SGConv(4, 3, K=2), ["last.lin"]),
        (lambda: GCNConv(4, 3), ["last"]),
        (lambda: GCNConv(4, 3, bias=False), ["last"]),
    ],
    ids=["sage", "gin", "sgc", "gcn", "gcn_without_bias"],
)
def test_whole_layers(conv: Callable[[], nn.Module], names: list[str]) -> None:
    model = Wrapped(conv())
    assert list(fed(model, small_graph(), strict=True).blocks) == names


@pytest.mark.parametrize(("conv", "bias", "prefix"), [(GATConv, 6, ["lin"]), (GATv2Conv, 6, ["lin_l", "lin_r"])], ids=["gat", "gatv2"])
def test_attention_vectors_fall_back(conv: type[nn.Module], bias: int, prefix: list[str]) -> None:
    model = Wrapped(conv(4, 3, heads=2))
    with pytest.warns(UserWarning, match="have no layer adapter: last.att"):
        preconditioner = fed(model, small_graph())
    layers = [name for name, block in preconditioner.blocks.items() if block.layer is not None]
    assert sorted(layers) == sorted(["last.bias", *(f"last.{p}" for p in prefix)])
    G = preconditioner.blocks["last.bias"].state.moments["F"]
    # squared error: the gradient of the output is a unit vector for every node and column
    torch.testing.assert_close(G, torch.eye(bias), rtol=1e-10, atol=1e-12)
    with pytest.raises(UnsupportedLayerError, match=r"last\.att"):
        fed(Wrapped(conv(4, 3, heads=2)), small_graph(), strict=True)


@pytest.mark.parametrize("options", [{"aggr": "mean"}, {"aggr": "sum", "root_weight": False}], ids=["mean", "sum"])
def test_sage_is_exact_with_squared_error(options: dict[str, Any]) -> None:
    """SAGE's linear layer gets aggregated inputs by itself, so its block is the exact one."""
    model, x = Wrapped(SAGEConv(4, 3, **options)), torch.randn(5, 4)
    names = ("last.lin_l.weight", "last.lin_l.bias")
    expected = exact_block(model, (x, small_graph()), names, gaussian_root(model(x, small_graph())), torch.ones(5))
    preconditioner = fed(model, small_graph(), x=x)
    torch.testing.assert_close(dense(preconditioner, "last.lin_l"), expected + 0.5 * torch.eye(len(expected)), rtol=1e-10, atol=1e-12)


def test_sgc_is_exact_with_squared_error() -> None:
    model, x = Wrapped(SGConv(4, 3, K=2)), torch.randn(5, 4)
    names = ("last.lin.weight", "last.lin.bias")
    expected = exact_block(model, (x, small_graph()), names, gaussian_root(model(x, small_graph())), torch.ones(5))
    preconditioner = fed(model, small_graph(), x=x)
    torch.testing.assert_close(dense(preconditioner, "last.lin"), expected + 0.5 * torch.eye(len(expected)), rtol=1e-10, atol=1e-12)


def test_gcnii_is_exact_with_squared_error() -> None:
    """``S = (1 - beta) M + beta M W``: the block of ``W^T`` is ``I (x) beta^2 M^T M / N``."""
    conv = GCN2Conv(3, alpha=0.2, theta=0.5, layer=2)
    first, x = torch.randn(5, 3), torch.randn(5, 3)
    model = Wrapped(conv, lambda x: (x, first))
    mixed = conv.beta * ((1 - conv.alpha) * dense_adjacency(small_graph(), 5) @ x + conv.alpha * first)
    preconditioner = fed(model, small_graph(), strict=True, x=x)
    expected = torch.kron(torch.eye(3), mixed.mT @ mixed / 5)
    torch.testing.assert_close(dense(preconditioner, "last"), expected + 0.5 * torch.eye(9), rtol=1e-10, atol=1e-12)
    v = torch.randn(3, 3)
    parameters = preconditioner.from_blocks({"last": v})
    torch.testing.assert_close(parameters[conv.weight1], v.mT)


def test_a_model_with_appnp() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.spread = Linear(4, 3), APPNP(K=3, alpha=0.1)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            result: Tensor = self.spread(self.lin(x), edge_index)
            return result

    assert list(fed(Net(), small_graph(), strict=True).blocks) == ["lin"]


# torch-geometric's own products with sparse tensors
@pytest.mark.filterwarnings("ignore:Sparse invariant checks", "ignore:Converting sparse tensor to CSR", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("cached", [False, True])
def test_sparse_adjacency_and_cache(cached: bool) -> None:
    x = torch.randn(5, 4)
    results = []
    for edges in (small_graph(), to_torch_sparse_tensor(small_graph(), size=(5, 5)).transpose(0, 1).coalesce()):
        torch.manual_seed(0)
        conv = GCNConv(4, 3, cached=cached)
        results.append(dense(fed(Wrapped(conv), edges, x=x), "last"))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggr", ["mean", "max"])
def test_other_aggregations_are_left_to_the_linear_layer(aggr: str) -> None:
    assert list(fed(Wrapped(GCNConv(4, 3, aggr=aggr)), small_graph()).blocks) == ["last.lin", "last.bias"]


def test_a_subclass_with_other_messages_is_left_to_the_linear_layer() -> None:
    class Gated(GCNConv):  # type: ignore[misc]
        def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
            return torch.tanh(x_j) * edge_weight.unsqueeze(-1)

    assert list(fed(Wrapped(Gated(4, 3)), small_graph()).blocks) == ["last.lin", "last.bias"]


def test_the_choice_belongs_to_the_optimizers_built_inside() -> None:
    model = OneLayer()
    with factorization("pre_aggregation"):
        inside = NaturalGradient(model, KFAC())
    outside = NaturalGradient(model, KFAC())
    assert list(inside.preconditioner.blocks) == ["last.lin", "last.bias"]
    assert list(outside.preconditioner.blocks) == ["last"]
    with pytest.raises(ConfigError, match=r"unknown factorization 'agregated'.*did you mean 'aggregated'"), factorization("agregated"):
        pass


def test_several_feature_matrices_on_one_graph_are_refused() -> None:
    model = OneLayer()
    with pytest.raises(ShapeError, match=r"got features of shape \(2, 5, 4\)"):
        fed(model, small_graph(), x=torch.randn(2, 5, 4))


def test_report() -> None:
    model = TwoLayers()
    rows = coverage(model, fed(model, small_graph()))
    assert [(r.name, r.treatment, r.parameters) for r in rows] == [("first", "Exact, aggregated", 15), ("last", "Exact, aggregated", 12)]
    assert sum(r.share for r in rows) == pytest.approx(1.0)
    assert re.search(r"first\s+GCNConv\s+Exact, aggregated\s+3x5\s+15\s+55\.56%", describe(rows))
    attention = Wrapped(GATConv(4, 3))
    with pytest.warns(UserWarning, match="no layer adapter"):
        observed = fed(attention, small_graph())
    rows = coverage(attention, observed)
    assert {r.name: r.treatment for r in rows} == {
        "last.lin": "Exact, pre_aggregation",
        "last.bias": "Exact, bias of the output",
        "last.att_src": "diagonal fallback",
        "last.att_dst": "diagonal fallback",
    }
    sage = Wrapped(SAGEConv(4, 3))
    assert {r.treatment for r in coverage(sage, fed(sage, small_graph()))} == {"Exact, aggregated"}


@pytest.mark.parametrize("kind", ["aggregated", "pre_aggregation"])
def test_the_convolution_of_one_graph_is_the_convolution(kind: str) -> None:
    """Output, gradients and blocks of `FixedGCNConv` are those of `GCNConv`, at the first call and at later ones, and after copying."""
    x, edges = torch.randn(5, 4), small_graph()
    convs = [GCNConv(4, 3), FixedGCNConv(4, 3, cached=True)]
    convs[1].load_state_dict(convs[0].state_dict())
    convs[1](x, edges)
    convs.append(copy.deepcopy(convs[1]))
    found = []
    for conv in convs:
        model = Wrapped(conv)
        outputs = model(x, edges)
        (outputs.square().sum()).backward()
        with factorization(kind):
            preconditioner = fed(model, edges, strict=True, x=x)
        assert list(preconditioner.blocks) == (["last"] if kind == "aggregated" else ["last.lin", "last.bias"])
        blocks = [dense(preconditioner, name) for name in preconditioner.blocks]
        found.append([outputs.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *blocks])
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            # float64, sums of fewer than 20 terms
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    convs[1].reset_parameters()
    two_nodes = torch.tensor([[0, 1], [1, 0]])
    torch.testing.assert_close(convs[1](x[:2], two_nodes), dense_adjacency(two_nodes, 2) @ x[:2] @ convs[1].lin.weight.mT)
