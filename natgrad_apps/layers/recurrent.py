"""Recurrent layers: `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells, whose steps are calls that share the weights.

A step computes ``s_t = W_ih x_t + b_ih`` and ``r_t = W_hh h_{t-1} + b_hh`` (the gates of a layer stacked) and combines them, so a layer has
two weight matrices, with the inputs ``x_t`` and ``h_{t-1}`` and the pre-activation gradients ``Ds_t`` and ``Dr_t`` of backpropagation
through time; the two agree but for the candidate gate of a GRU. The gradient of a matrix is ``sum_t g_t a_t^T``, so its Fisher block is

    F = E[(sum_t g_t (x) a_t) (sum_t g_t (x) a_t)^T] = sum_{t,t'} E[g_t g_t'^T (x) a_t a_t'^T].

Every step is a call of a layer whose units are the sequences, and calls are shared positions (see ``docs/architecture.md``). With
`expand` sharing K-FAC keeps the terms ``t = t'`` and takes ``a`` and ``g`` for independent: ``A`` is the mean of ``a_t a_t^T`` over steps,
``G`` the sum of ``g_t g_t^T``. That is the paper's approximation with independent time steps. EKFAC measures its scales from
``sum_t g_t a_t^T`` of whole sequences, cross terms included, and so do the diagonal and the exact block with all that they keep.

Departures from the paper: neither of its chain models of the dependence between steps; sequences of different lengths count by their
steps. Reference: Martens, Ba & Johnson, Kronecker-factored curvature approximations for recurrent neural networks, ICLR 2018.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from natgrad_apps.layers.base import Arguments, Composite, Geometry, Part
from natgrad_apps.layers.linear import LinearAdapter

Memory = tuple[Tensor, ...]
"""Hidden state ``[N, hidden]``, and the cell state of an LSTM after it."""


class RecurrentAdapter(LinearAdapter):
    """A matrix of a recurrent layer: rows are the gates, one after the other."""

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (Part,)

    def weight(self, module: nn.Module) -> object:
        """The module's parameter."""
        assert isinstance(module, Part)
        return module.parameters_of_module()[0]

    def bias(self, module: nn.Module) -> object:
        """The module's parameter, None if there is none."""
        assert isinstance(module, Part)
        return module.parameters_of_module()[1]

    def geometry(self, module: nn.Module) -> Geometry:
        """``d_out`` are the gates' units, ``d_in`` the features of the input or of the hidden state."""
        assert isinstance(module, Part)
        d_out, d_in = module.tensors()[0].shape
        return Geometry(d_in=d_in, d_out=d_out)


class RecurrentCell(Composite):
    """`nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`: the parts ``ih`` and ``hh``."""

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

    def make_parts(self) -> dict[str, Part]:
        """``W_ih`` and ``W_hh``, with their biases."""
        assert isinstance(self.module, nn.RNNCellBase)
        return {name: Part(self, f"weight_{name}", f"bias_{name}" if self.module.bias else None) for name in ("ih", "hh")}

    def forward(self, arguments: Arguments) -> Tensor | Memory:
        """One step for ``[N, d]`` or ``[d]``."""
        cell = self.module
        assert isinstance(cell, nn.RNNCellBase)
        x, given = arguments.get(0, "input"), arguments.get(1, "hx")
        lone = x.dim() == 1
        x = x.unsqueeze(0) if lone else x
        memory = _memory(given, 2 if isinstance(cell, nn.LSTMCell) else 1, (len(x), cell.hidden_size), x)
        memory = tuple(m.unsqueeze(0) for m in memory) if lone and given is not None else memory
        kind = "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU" if isinstance(cell, nn.GRUCell) else _activation(cell)
        after = _step(kind, self.parts["ih"], self.parts["hh"], None, x, memory)
        after = tuple(m.squeeze(0) for m in after) if lone else after
        return after if kind == "LSTM" else after[0]


class RecurrentNetwork(Composite):
    """`nn.LSTM`, `nn.GRU` and `nn.RNN`: for layer ``k`` the parts ``ih_lk`` and ``hh_lk``, with a projection also ``hr_lk``.

    The backward direction has ``_reverse`` at the end of the name. Batch first or not, with or without a batch dimension, packed sequences.
    Cost: a Python loop over the steps, during a capture only.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]] = (nn.LSTM, nn.GRU, nn.RNN)

    def make_parts(self) -> dict[str, Part]:
        """Two or three for each layer and direction."""
        network = self._network
        kinds = ("ih", "hh", "hr") if network.proj_size else ("ih", "hh")
        names = [(kind, suffix) for suffixes in self._suffixes() for suffix in suffixes for kind in kinds]
        has_bias = {"ih": network.bias, "hh": network.bias, "hr": False}
        return {f"{k}_{s}": Part(self, f"weight_{k}_{s}", f"bias_{k}_{s}" if has_bias[k] else None) for k, s in names}

    @property
    def _network(self) -> nn.RNNBase:
        assert isinstance(self.module, nn.RNNBase)
        return self.module

    def _suffixes(self) -> list[list[str]]:
        """Ends of the parameters' names, of each direction of each layer."""
        directions = ("", "_reverse") if self._network.bidirectional else ("",)
        return [[f"l{layer}{direction}" for direction in directions] for layer in range(self._network.num_layers)]

    def forward(self, arguments: Arguments) -> tuple[Tensor | PackedSequence, Tensor | Memory]:
        """All steps of all layers: the outputs and the last memory, in the shapes that the module gives them."""
        network = self._network
        x, given = arguments.get(0, "input"), arguments.get(1, "hx")
        packed = isinstance(x, PackedSequence)
        lone = not packed and x.dim() == 2
        steps = list(x.data.split(x.batch_sizes.tolist())) if packed else _steps(x, batch_first=network.batch_first)
        count = len(steps[0])
        kind = network.mode
        memory = self._first_memory(given, count, steps[0], lone=lone, order=x.sorted_indices if packed else None)
        last: list[Memory] = []
        for layer, suffixes in enumerate(self._suffixes()):
            found = []
            for suffix in suffixes:
                own = tuple(m[len(last)] for m in memory)
                outputs, after = self._run(kind, suffix, steps, own)
                found.append(outputs)
                last.append(after)
            steps = [torch.cat(parts, -1) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]
            if network.dropout and network.training and layer < network.num_layers - 1:
                steps = [functional.dropout(step, network.dropout) for step in steps]
        final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        output: Tensor | PackedSequence
        if packed:
            output = PackedSequence(torch.cat(steps), x.batch_sizes, x.sorted_indices, x.unsorted_indices)
            final = final if x.unsorted_indices is None else tuple(m[:, x.unsorted_indices] for m in final)
        else:
            output = torch.stack(steps, 1 if network.batch_first and not lone else 0)
        if lone:
            output, final = output.squeeze(1), tuple(m.squeeze(1) for m in final)  # type: ignore[union-attr]
        return output, final if network.mode == "LSTM" else final[0]

    def _first_memory(self, given: Any, count: int, like: Tensor, *, lone: bool, order: Tensor | None) -> Memory:
        """``[layers * directions, N, hidden]`` each, in the order of a packed sequence."""
        network = self._network
        rows = network.num_layers * (2 if network.bidirectional else 1)
        if given is None:
            widths = [network.proj_size or network.hidden_size, network.hidden_size][: 2 if network.mode == "LSTM" else 1]
            return tuple(like.new_zeros(rows, count, width) for width in widths)
        memory = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        memory = tuple(m.unsqueeze(1) for m in memory) if lone else memory
        return memory if order is None else tuple(m[:, order] for m in memory)

    def _run(self, kind: str, suffix: str, steps: list[Tensor], memory: Memory) -> tuple[list[Tensor], Memory]:
        """One direction of one layer. Step ``t`` of a packed sequence has the first ``n_t`` sequences, the others keep their memory."""
        ih, hh, hr = (self.parts.get(f"{name}_{suffix}") for name in ("ih", "hh", "hr"))
        assert ih is not None
        assert hh is not None
        backwards = suffix.endswith("_reverse")
        outputs = []
        for x in reversed(steps) if backwards else steps:
            n = len(x)
            after = _step(kind, ih, hh, hr, x, tuple(m[:n] for m in memory))
            outputs.append(after[0])
            memory = tuple(torch.cat([new, old[n:]]) if n < len(old) else new for new, old in zip(after, memory, strict=True))
        return (outputs[::-1] if backwards else outputs), memory


def _step(kind: str, ih: Part, hh: Part, hr: Part | None, x: Tensor, memory: Memory) -> Memory:
    """Memory after one step: ``x: [N, d]``, memory ``[N, hidden]`` each. Gates stand in the order in which torch stacks them."""
    s, r = ih(x), hh(memory[0])
    if kind == "LSTM":
        i, f, g, o = (s + r).chunk(4, -1)
        c = f.sigmoid() * memory[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if hr is None else hr(h)), c
    if kind == "GRU":
        (s_r, s_z, s_n), (r_r, r_z, r_n) = s.chunk(3, -1), r.chunk(3, -1)
        z = (s_z + r_z).sigmoid()
        n = (s_n + (s_r + r_r).sigmoid() * r_n).tanh()
        return ((1 - z) * n + z * memory[0],)
    return ((s + r).relu() if kind == "RNN_RELU" else (s + r).tanh(),)


def _activation(cell: nn.RNNCellBase) -> str:
    assert isinstance(cell, nn.RNNCell)
    return "RNN_RELU" if cell.nonlinearity == "relu" else "RNN_TANH"


def _memory(given: Any, parts: int, shape: tuple[int, int], like: Tensor) -> Memory:
    if given is None:
        return tuple(like.new_zeros(shape) for _ in range(parts))
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


def _steps(x: Tensor, *, batch_first: bool) -> list[Tensor]:
    """``[T, d]``, ``[T, N, d]`` or ``[N, T, d]`` as ``T`` tensors ``[N, d]``."""
    if x.dim() == 2:
        return list(x.unsqueeze(1))
    return list((x.transpose(0, 1) if batch_first else x).contiguous())
