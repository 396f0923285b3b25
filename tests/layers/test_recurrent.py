"""Recurrent layers: the unrolled pass is the module's own, and its calls carry inputs and pre-activation gradients of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from natgrad_apps import KFAC, Fisher, NaturalGradient, Preconditioner
from natgrad_apps.errors import UnsupportedLayerWarning
from natgrad_apps.layers.base import Arguments
from natgrad_apps.layers.discover import composite_of, discover
from natgrad_apps.layers.linear import LinearInputs
from natgrad_apps.likelihoods import Categorical, Gaussian
from natgrad_apps.statistics.capture import PACKING_HOOKS
from natgrad_apps.statistics.moments import LayerStatistics
from natgrad_apps.statistics.uses import Use, joined
from natgrad_apps.types import BlockSpec
from tests._feed import factors, feed

pytestmark = pytest.mark.usefixtures("float64")

NETWORKS: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(3, 4),
    "lstm-deep": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm-projected": lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2, bidirectional=True),
    "lstm-no-bias": lambda: nn.LSTM(3, 4, bias=False),
    "gru": lambda: nn.GRU(3, 4),
    "gru-deep": lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "rnn-tanh": lambda: nn.RNN(3, 4, num_layers=2),
    "rnn-relu": lambda: nn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
}
CELLS: dict[str, Callable[[], nn.RNNCellBase]] = {
    "lstm": lambda: nn.LSTMCell(3, 4),
    "gru": lambda: nn.GRUCell(3, 4, bias=False),
    "rnn-tanh": lambda: nn.RNNCell(3, 4),
    "rnn-relu": lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
}
every_network = pytest.mark.parametrize("kind", NETWORKS)


def unrolled(module: nn.Module, *args: Any) -> Any:
    composite = composite_of(module)
    assert composite is not None
    return composite.forward(Arguments(args, {}))


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data, value.batch_sizes]
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in leaves(part)]


def assert_same(module: nn.Module, *args: Any) -> None:
    """Outputs and gradients of the unrolled pass are those of torch's kernel; float64, sums of a few dozen products."""
    expected, actual = leaves(module(*args)), leaves(unrolled(module, *args))
    parameters = [p for p in module.parameters() if p.requires_grad]
    weights = [torch.randn_like(leaf) if leaf.is_floating_point() else None for leaf in expected]
    gradients = []
    for found in (expected, actual):
        total = torch.stack([(leaf * w).sum() for leaf, w in zip(found, weights, strict=True) if w is not None]).sum()
        gradients.append(torch.autograd.grad(total, parameters))
    for one, other in zip([*expected, *gradients[0]], [*actual, *gradients[1]], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@every_network
def test_the_unrolled_pass_is_the_modules_own(kind: str) -> None:
    module = NETWORKS[kind]()
    x = torch.randn(5, 2, 3)
    count = 5 if module.batch_first else 2
    rows = module.num_layers * (2 if module.bidirectional else 1)
    assert_same(module, x)
    hidden = torch.randn(rows, count, module.proj_size or 4)
    memory = (hidden, torch.randn(rows, count, 4)) if module.mode == "LSTM" else hidden
    assert_same(module, x, memory)
    assert_same(module, torch.randn(5, 3))
    lone = tuple(m[:, 0] for m in memory) if isinstance(memory, tuple) else memory[:, 0]
    assert_same(module, torch.randn(5, 3), lone)


@every_network
@pytest.mark.parametrize("ordered", [True, False])
def test_packed_sequences(kind: str, ordered: bool) -> None:
    module = NETWORKS[kind]()
    lengths = [4, 2, 1] if ordered else [2, 4, 1]
    x = pack_padded_sequence(torch.randn(4, 3, 3), torch.tensor(lengths), enforce_sorted=ordered)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    hidden = torch.randn(rows, 3, module.proj_size or 4)
    assert_same(module, x)
    assert_same(module, x, (hidden, torch.randn(rows, 3, 4)) if module.mode == "LSTM" else hidden)


@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str) -> None:
    cell = CELLS[kind]()
    hidden, state = torch.randn(2, 4), torch.randn(2, 4)
    memory = (hidden, state) if kind == "lstm" else hidden
    lone = (hidden[0], state[0]) if kind == "lstm" else hidden[0]
    for args in ((torch.randn(2, 3),), (torch.randn(2, 3), memory), (torch.randn(3),), (torch.randn(3), lone)):
        assert_same(cell, *args)


def test_dropout_between_layers_is_drawn_in_training_only() -> None:
    module = nn.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(50, 8, 3)
    assert not torch.equal(unrolled(module, x)[0], unrolled(module, x)[0])
    first, _ = unrolled(module, x)
    # the mean over 1600 outputs of the second layer; both draw masks of the same distribution, z-bound 4 at a deviation below 0.2
    assert abs(first.mean() - module(x)[0].mean()) < 4 * 0.2 * (2 / 1600) ** 0.5
    module.eval()
    assert_same(module, x)


class Tagger(nn.Module):
    """A recurrent layer and a linear one on all of its outputs, or on the last one."""

    def __init__(self, recurrent: nn.RNNBase, *, last: bool = True) -> None:
        super().__init__()
        self.recurrent, self.last = recurrent, last
        self.head = nn.Linear((2 if recurrent.bidirectional else 1) * (recurrent.proj_size or recurrent.hidden_size), 2)

    def forward(self, x: Any) -> Tensor:
        outputs = self.recurrent(x)[0]
        outputs = outputs.transpose(0, 1) if not self.recurrent.batch_first else outputs
        result: Tensor = self.head(outputs[:, -1] if self.last else outputs)
        return result


def test_blocks_have_the_names_and_shapes_of_the_matrices() -> None:
    found = discover(Tagger(NETWORKS["lstm-projected"]()))
    shapes = {layer.spec.name: (layer.spec.d_out, layer.spec.d_in) for layer in found.layers}
    expected: dict[str, tuple[int, int]] = {}
    for layer, width in (("l0", 3), ("l1", 4)):
        for direction in ("", "_reverse"):
            sizes = {"ih": (16, width + 1), "hh": (16, 3), "hr": (2, 4)}
            expected |= {f"recurrent.{kind}_{layer}{direction}": size for kind, size in sizes.items()}
    assert shapes == {**expected, "head": (2, 5)}
    assert not found.uncovered
    assert {layer.spec.kind for layer in found.layers} == {"recurrent", "linear"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_factors_are_sums_over_steps(kind: str) -> None:
    """``A`` and ``G`` from torch's own cells: a zero added to the bias of each step and sequence has the pre-activation gradient."""
    sequences, steps, hidden = 3, 4, 5
    network, cell = getattr(nn, kind)(2, hidden), getattr(nn, f"{kind}Cell")(2, hidden)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in network.state_dict().items()})
    model, x = Tagger(network), torch.randn(steps, sequences, 2)
    preconditioner = feed(
        Preconditioner(model, KFAC(), fisher=Fisher("empirical")), model, x, Gaussian, targets := torch.randn(sequences, 2)
    )

    weights = dict(cell.named_parameters())
    zeros: dict[str, list[Tensor]] = {"ih": [], "hh": []}
    inputs: dict[str, list[Tensor]] = {"ih": [], "hh": []}
    outputs = []
    for n in range(sequences):
        h = torch.zeros(1, hidden)
        memory: Any = (h, h) if kind == "LSTM" else h
        for t in range(steps):
            own = {name: torch.zeros_like(weights[f"bias_{name}"], requires_grad=True) for name in zeros}
            for name, a in (("ih", x[t, n : n + 1]), ("hh", memory[0] if kind == "LSTM" else memory)):
                zeros[name].append(own[name])
                inputs[name].append(torch.cat([a.detach(), torch.ones(1, 1)], 1))
            shifted = weights | {f"bias_{name}": weights[f"bias_{name}"] + e for name, e in own.items()}
            memory = functional_call(cell, shifted, (x[t, n : n + 1], memory))
        outputs.append(memory[0] if kind == "LSTM" else memory)
    score = -(model.head(torch.cat(outputs)) - targets).square().sum() / 2
    for name, shifts in zeros.items():
        g = torch.stack(torch.autograd.grad(score, shifts, retain_graph=True))
        a = torch.cat(inputs[name])
        A, G = factors(preconditioner, f"recurrent.{name}_l0")
        # float64, sums of 12 terms
        torch.testing.assert_close(A, a.mT @ a / (sequences * steps), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(G, g.mT @ g / sequences, rtol=1e-11, atol=1e-13)


class Final(nn.Module):
    """From the last hidden state of each sequence, packed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, x: Any) -> Tensor:
        result: Tensor = self.head(self.lstm(x)[1][0][-1])
        return result


def test_factors_of_packed_sequences_are_sums_over_the_steps_that_there_are() -> None:
    model, lengths, x, targets = Final(), [4, 2, 1], torch.randn(4, 3, 3), torch.randn(3, 2)

    def found(inputs: Any, wanted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        preconditioner = feed(Preconditioner(model, KFAC(), fisher=Fisher("empirical")), model, inputs, Gaussian, wanted)
        return {name: factors(preconditioner, name) for name in ("lstm.ih_l0", "lstm.hh_l0")}

    alone = [found(x[:t, n : n + 1], targets[n : n + 1]) for n, t in enumerate(lengths)]
    for name, (A, G) in found(pack_padded_sequence(x, torch.tensor(lengths)), targets).items():
        # float64, sums of 7 terms
        torch.testing.assert_close(A, torch.stack([t * own[name][0] for t, own in zip(lengths, alone, strict=True)]).sum(0) / 7)
        torch.testing.assert_close(G, torch.stack([own[name][1] for own in alone]).mean(0))


def test_steps_are_measured_together() -> None:
    """One product for all steps of a matrix, where their units are the same; the sums are those of single calls."""
    steps = [Use(LinearInputs(torch.randn(5, 1, 3)), (torch.randn(5, 1, 2), torch.randn(5, 1, 2)), 5, 1) for _ in range(4)]
    (whole,) = joined(steps)
    assert (whole.units, whole.positions) == (5, 4)
    spec = BlockSpec("x", "linear", (), 2, 4, torch.float64, torch.device("cpu"))
    apart, together = (LayerStatistics(spec, uses, 5, False, True, True) for uses in (steps, [whole]))
    for method in ("input_moment", "gradient_moment", "squared_gradient", "dense"):
        # float64, sums of 40 terms in another order
        torch.testing.assert_close(getattr(together, method)(), getattr(apart, method)(), rtol=1e-12, atol=1e-13)
    fewer = Use(LinearInputs(torch.randn(3, 1, 3)), (torch.randn(3, 1, 2), torch.randn(3, 1, 2)), 3, 1)
    assert list(joined([*steps, fewer])) == [*steps, fewer]


def test_the_model_is_left_alone() -> None:
    model = Tagger(nn.LSTM(3, 4))
    x, keys = torch.randn(5, 2, 3), list(model.state_dict())
    optimizer = NaturalGradient(model, KFAC(), lr=0.1)
    before, start = model(x), [p.detach().clone() for p in model.parameters()]
    with optimizer.capture():
        inside = model(x)
        with torch.no_grad():
            assert torch.equal(model(x), before)
        optimizer.observe(Categorical(inside))
    torch.testing.assert_close(inside, before, rtol=1e-11, atol=1e-12)
    assert list(model.state_dict()) == keys
    assert not model.recurrent._forward_hooks
    inside.logsumexp(1).sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_frozen_and_tied_matrices() -> None:
    model = nn.ModuleDict({"one": nn.GRU(3, 3), "two": nn.GRU(3, 3)})
    one, two = model["one"], model["two"]
    assert isinstance(one, nn.GRU)
    assert isinstance(two, nn.GRU)
    one.weight_hh_l0.requires_grad_(False)
    two.weight_ih_l0, two.bias_ih_l0 = one.weight_ih_l0, one.bias_ih_l0
    shapes = {layer.spec.name: (layer.spec.shape, len(layer.modules)) for layer in discover(model).layers}
    assert shapes == {"one.ih_l0": ((9, 4), 2), "one.hh_l0.bias": ((9, 1), 1), "two.hh_l0": ((9, 4), 1)}


@pytest.mark.skipif(PACKING_HOOKS is None, reason="before torch 2.8 checkpointing cannot be told")
def test_layers_inside_activation_checkpointing_fall_back_to_the_diagonal() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.head(checkpoint(lambda y: self.lstm(y)[0][-1], x, use_reentrant=False))
            return outputs

    model, x = Checkpointed(), torch.randn(5, 6, 3)
    optimizer = NaturalGradient(model, KFAC(), lr=0.1)
    with optimizer.capture(), pytest.warns(UnsupportedLayerWarning, match=r"lstm"):
        optimizer.observe(Categorical(outputs := model(x)))
    outputs.logsumexp(1).sum().backward()
    assert optimizer.step().predicted_kl > 0
