"""Factors of graph layers against the exact Fisher of a graph of five nodes, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from natgrad_apps import KFAC, Exact, Fisher, GramKFAC, Periodic, Preconditioner, Tikhonov
from natgrad_apps.curvature import Curvature
from natgrad_apps.graphs import factorization
from natgrad_apps.likelihoods import Categorical, Gaussian
from tests._dense import categorical_root, gaussian_root
from tests._feed import dense
from tests.graphs._models import OneLayer, TwoLayers, dense_adjacency, exact_block, small_graph, softmax_gradient

pytestmark = pytest.mark.usefixtures("float64")

LAMBDA = 0.25
ALL = torch.ones(5, dtype=torch.float64)
LABELLED = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
PSEUDO = torch.tensor([1.0, 0.3, 1.0, 0.3, 0.3], dtype=torch.float64)
every_choice = pytest.mark.parametrize("weights", [ALL, LABELLED, PSEUDO], ids=["all", "labelled", "pseudo"])
LAST = ("last.lin.weight", "last.bias")


def graph(d_in: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(5, d_in), small_graph()


def fed(
    model: nn.Module, inputs: tuple[Tensor, Tensor], curvature: Curvature, weights: Tensor, *, gaussian: bool = False
) -> Preconditioner:
    preconditioner = Preconditioner(
        model, curvature, damping=Tikhonov(LAMBDA), fisher=Fisher("exact"), refresh=Periodic(inverse_period=1), strict=True
    )
    with preconditioner.capture():
        outputs = model(*inputs)
        likelihood = Gaussian(outputs) if gaussian else Categorical(outputs)
        preconditioner.observe(likelihood.weighted(weights))
    preconditioner.update()
    return preconditioner


def damped(block: Tensor) -> Tensor:
    return block + LAMBDA * torch.eye(len(block))


@every_choice
@pytest.mark.parametrize("curvature", [KFAC(), GramKFAC(), Exact()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("d_in", [2, 9])
def test_one_layer_with_squared_error(weights: Tensor, curvature: Curvature, d_in: int) -> None:
    """The Jacobian of node i is ``I (x) x~_i``, so the Fisher is ``I (x) sum_i w_i x~_i x~_i^T / sum_i w_i``: K-FAC is exact."""
    model, inputs = OneLayer(d_in), graph(d_in)
    outputs = model(*inputs)
    expected = exact_block(model, inputs, LAST, gaussian_root(outputs), weights)
    # float64, sums of fewer than 200 terms
    torch.testing.assert_close(
        dense(fed(model, inputs, curvature, weights, gaussian=True), "last"), damped(expected), rtol=1e-10, atol=1e-12
    )


@every_choice
def test_last_layer_with_softmax_node_by_node(weights: Tensor) -> None:
    """The per-node outer products ``(g_i g_i^T) (x) (x~_i x~_i^T)`` sum to the exact block of the last layer."""
    model, inputs = TwoLayers(), graph()
    expected = exact_block(model, inputs, LAST, categorical_root(model(*inputs)), weights)
    torch.testing.assert_close(dense(fed(model, inputs, Exact(), weights), "last"), damped(expected), rtol=1e-10, atol=1e-12)


def test_one_labelled_node_with_softmax() -> None:
    """With one counted node the product of the two factors of the last layer is that node's term."""
    model, inputs = TwoLayers(), graph()
    weights = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0])
    expected = exact_block(model, inputs, LAST, categorical_root(model(*inputs)), weights)
    for curvature in (KFAC(), GramKFAC()):
        torch.testing.assert_close(dense(fed(model, inputs, curvature, weights), "last"), damped(expected), rtol=1e-10, atol=1e-12)


@every_choice
def test_factors_by_their_definition(weights: Tensor) -> None:
    """Both layers: ``A = sum_i w_i x~_i x~_i^T / W``, ``G = sum_t w_t sum_i g_ti g_ti^T / W`` with ``W = sum_t w_t``; the random signs of
    terms leave ``G`` of the last layer exact and that of the first one unbiased, so that one is not compared.
    """
    model, (x, edge_index) = TwoLayers(), graph()
    adjacency = dense_adjacency(edge_index, 5)
    preconditioner = fed(model, (x, edge_index), KFAC(), weights)
    hidden = torch.tanh(model.first(x, edge_index)).detach()
    for name, inputs in (("first", x), ("last", hidden)):
        rows = torch.cat([adjacency @ inputs, torch.ones(5, 1)], 1)
        A = (rows.mT * weights) @ rows / weights.sum()
        torch.testing.assert_close(preconditioner.blocks[name].state.moments["A0"], A, rtol=1e-10, atol=1e-12)
    root = categorical_root(model(x, edge_index))
    G = torch.einsum("t,tec,tfc->ef", weights, root, root) / weights.sum()
    torch.testing.assert_close(preconditioner.blocks["last"].state.moments["G0"], G, rtol=1e-10, atol=1e-12)


def test_gradient_factor_of_the_first_layer_is_unbiased() -> None:
    """One counted node has one term, whose sign does not matter: ``G = sum_c sum_i g_ci g_ci^T`` with ``g_c`` the gradient of column c."""
    model, inputs = TwoLayers(), graph()
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    hidden: list[Tensor] = []
    model.first.register_forward_hook(lambda *call: hidden.append(call[2]))
    outputs = model(*inputs)
    G = torch.zeros(3, 3)
    for column in categorical_root(outputs)[1].mT:
        (g,) = torch.autograd.grad(outputs[1] @ column, hidden[0], retain_graph=True)
        G += g.mT @ g
    preconditioner = fed(model, inputs, KFAC(), weights)
    torch.testing.assert_close(preconditioner.blocks["first"].state.moments["G0"], G, rtol=1e-10, atol=1e-12)


def test_identity_graph_is_plain_kfac() -> None:
    """Without edges only self-loops are left, ``A_hat = I``."""
    x, nothing = torch.randn(5, 4), torch.empty(2, 0, dtype=torch.int64)
    graph_model = TwoLayers()
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    for linear, conv in ((plain[0], graph_model.first), (plain[2], graph_model.last)):
        assert isinstance(linear, nn.Linear)
        linear.load_state_dict({"weight": conv.lin.weight.detach(), "bias": torch.randn(3)})
        conv.bias = nn.Parameter(linear.bias.detach().clone())
    first = fed(graph_model, (x, nothing), KFAC(), ALL)
    second = Preconditioner(plain, KFAC(), damping=LAMBDA, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with second.capture():
        second.observe(Categorical(plain(x)))
    second.update()
    for mine, theirs in (("first", "0"), ("last", "2")):
        torch.testing.assert_close(dense(first, mine), dense(second, theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kept", [[3], [0, 2]], ids=["one", "two"])
def test_nodes_of_weight_zero_carry_no_loss(kept: list[int]) -> None:
    """``G`` equals that of a likelihood which has the labelled nodes only."""
    model, inputs = TwoLayers(), graph()
    weights = torch.zeros(5)
    weights[kept] = 1.0
    weighted = fed(model, inputs, KFAC(), weights)
    alone = Preconditioner(model, KFAC(), damping=LAMBDA, fisher=Fisher("exact"), refresh=Periodic(inverse_period=1))
    with alone.capture():
        alone.observe(Categorical(model(*inputs)[kept]))
    alone.update()
    # two terms meet in the first layer with random signs, which the two runs draw in different order
    for name in ("first", "last") if len(kept) == 1 else ("last",):
        ours, theirs = (p.blocks[name].state.moments["G0"] for p in (weighted, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["aggregated", "pre_aggregation"])
def test_numbering_of_the_nodes_does_not_matter(kind: str) -> None:
    """One counted node, so that no sign matters; the preconditioned gradient stays what it is."""
    order = torch.tensor([3, 0, 4, 1, 2])
    place = order.argsort()
    model, (x, edge_index) = TwoLayers(), graph()
    labels, weights = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    steps = []
    for inputs, own_labels, own_weights in (
        ((x, edge_index), labels, weights),
        ((x[order], place[edge_index]), labels[order], weights[order]),
    ):
        with factorization(kind):
            preconditioner = fed(model, inputs, KFAC(), own_weights)
        model.zero_grad()
        softmax_gradient(model, inputs, own_labels, own_weights)
        gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
        steps.append(preconditioner.multiply_power(preconditioner.to_blocks(gradients), -1))
    assert steps[0].keys() == steps[1].keys()
    for name, step in steps[0].items():
        torch.testing.assert_close(step, steps[1][name], rtol=1e-10, atol=1e-12)


def test_pre_aggregation_is_what_the_linear_layer_sees() -> None:
    """``V = sum_i w_i h_i h_i^T / W`` and ``U = A_hat^T g g^T A_hat / W`` for one counted node; the bias has its own block."""
    model, (x, edge_index) = OneLayer(), graph()
    with factorization("pre_aggregation"):
        preconditioner = fed(model, (x, edge_index), KFAC(), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]))
    assert list(preconditioner.blocks) == ["last.lin", "last.bias"]
    root = categorical_root(model(x, edge_index))[1]
    row = dense_adjacency(edge_index, 5)[1]
    moments = preconditioner.blocks["last.lin"].state.moments
    torch.testing.assert_close(moments["A0"], torch.outer(x[1], x[1]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moments["G0"], row.square().sum() * root @ root.mT, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(preconditioner.blocks["last.bias"].state.moments["G0"], root @ root.mT, rtol=1e-10, atol=1e-12)


def test_wide_inputs_precondition_alike_in_both_forms() -> None:
    """Three counted nodes of 40 features: the Gram form is the dense one to 1e-8 (float64)."""
    model, inputs = TwoLayers(40), graph(40)
    weights, labels = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0]), torch.tensor([0, 1, 2, 1, 0])
    softmax_gradient(model, inputs, labels, weights)
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    steps = []
    for curvature in (KFAC(), GramKFAC()):
        preconditioner = fed(model, inputs, curvature, weights)
        steps.append(preconditioner.multiply_power(preconditioner.to_blocks(gradients), -1))
    assert preconditioner.blocks["first"].state.moments["R"].shape == (3, 41)
    for name, step in steps[0].items():
        torch.testing.assert_close(step, steps[1][name], rtol=1e-8, atol=1e-10)


def test_edge_weights_and_unnormalized_sums() -> None:
    x, edge_index = graph()
    strengths = torch.rand(edge_index.shape[1])
    matrix = torch.zeros(5, 5)
    matrix[edge_index[1], edge_index[0]] = strengths
    conv = GCNConv(4, 3, normalize=False)
    model = nn.ModuleDict({"last": conv})
    preconditioner = Preconditioner(model, KFAC(), damping=LAMBDA, fisher=Fisher("exact"))
    with preconditioner.capture():
        preconditioner.observe(Gaussian(conv(x, edge_index, edge_weight=strengths)))
    preconditioner.update()
    rows = torch.cat([matrix @ x, torch.ones(5, 1)], 1)
    torch.testing.assert_close(preconditioner.blocks["last"].state.moments["A0"], rows.mT @ rows / 5, rtol=1e-10, atol=1e-12)
