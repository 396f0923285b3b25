"""Records the inputs and outputs of layers during a forward pass. Hooks exist only between `Capture.open` and `Capture.close`.

A forward hook keeps the layer's input and the *gradient edge* of its output. The edge is taken before anything can
modify the output in place, so in-place activations are harmless, and a backward pass to edges computes no weight
gradient.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from natgrad_apps.errors import CaptureError
from natgrad_apps.layers._groups import GroupedInputs, sum_over
from natgrad_apps.layers.base import Arguments, Composite, Part
from natgrad_apps.layers.discover import Layer
from natgrad_apps.statistics.fisher import Subsample
from natgrad_apps.statistics.moments import LayerStatistics
from natgrad_apps.statistics.uses import Use, joined

PACKING_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
"""Asks torch for the hooks that pack saved tensors; torch has it from 2.8 on."""


@dataclass(frozen=True)
class Call:
    """One call of a module: the input it received (detached, not copied) with its version, and the gradient edge of its output.

    ``arguments`` is everything that it received, for adapters that need more than one tensor (the edges of a graph).
    """

    module: nn.Module
    x: Tensor
    version: int
    edge: GradientEdge
    arguments: Arguments


class Capture:
    """The calls recorded since `open`.

    Args:
        layers: The layers whose modules are hooked.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._adapters = {module: layer.adapter for layer in layers for module in layer.modules}
        self._composites = list(dict.fromkeys(module.composite for module in self._adapters if isinstance(module, Part)))
        self._calls: list[Call] = []
        self._open = False

    @property
    def active(self) -> bool:
        """Whether hooks are in place."""
        return self._open

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Install the hooks; remove them and drop what was recorded on leaving, whatever happens inside.

        Raises:
            CaptureError: A capture is open already.
        """
        if self._open:
            raise CaptureError("capture() is open already; captures do not nest, leave the first one before opening another")
        handles = []
        self._open = True
        try:
            with _eager():
                handles = [module.register_forward_hook(self._record, with_kwargs=True) for module in self._adapters]
                for composite in self._composites:  # before the hooks of others, which get the output that counts
                    hook = functools.partial(_take_apart, composite)
                    handles.append(composite.module.register_forward_hook(hook, with_kwargs=True, prepend=True))
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._calls.clear()
            self._open = False

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = Arguments(args, kwargs)
        x = arguments.get(0, self._adapters[module].input_name)
        # Activation checkpointing runs the forward pass again inside a backward pass.
        if torch._C._current_graph_task_id() != -1 or not torch.is_grad_enabled():
            return
        if not isinstance(output, Tensor) or not isinstance(x, Tensor) or not output.requires_grad:
            return
        self._calls.append(Call(module, x.detach(), x._version, get_gradient_edge(output), arguments))

    @property
    def calls(self) -> Sequence[Call]:
        """The calls recorded so far, in the order in which they happened."""
        return self._calls


def _take_apart(composite: Composite, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Hook of a composite: its output, computed again by calls of its parts, which are recorded.

    Not where tensors saved for the backward pass are packed: activation checkpointing would run the module again without this hook, and
    compare. Its parameters then count as read by other code. Before torch 2.8 nobody can tell, and checkpointing raises its own error.
    """
    packing = PACKING_HOOKS is not None and PACKING_HOOKS(True) is not None
    if packing or not torch.is_grad_enabled():
        return output
    return composite.forward(Arguments(args, kwargs))


def _eager() -> AbstractContextManager[Any]:
    """Make compiled models run eagerly, because compiled graphs ignore hooks that were added after compilation."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled; importing dynamo takes seconds
        return contextlib.nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def backward(outputs: Sequence[Tensor], inputs: Sequence[Any], column: Sequence[Tensor]) -> list[Tensor | None]:
    """Propagate one Fisher column from the likelihood's outputs to gradient edges and bare parameters; the graph is kept.

    Raises:
        CaptureError: The outputs carry no graph, or reentrant activation checkpointing is in the way.
    """
    pairs = [(output, vector) for output, vector in zip(outputs, column, strict=True) if output.requires_grad]
    if not pairs:
        raise CaptureError("the likelihood's outputs have no gradient history; build it from the model's outputs, not detached ones")
    try:
        return list(torch.autograd.grad([o for o, _ in pairs], inputs, [v for _, v in pairs], retain_graph=True, allow_unused=True))
    except RuntimeError as error:
        if "checkpoint" in str(error).lower():
            message = "reentrant activation checkpointing hides the graph; call torch.utils.checkpoint with use_reentrant=False"
            raise CaptureError(message) from error
        raise


def layer_statistics(
    layer: Layer, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]], settings: StatisticsSettings
) -> LayerStatistics:
    """Canonical statistics of one layer from its calls and the output gradients of each call and column.

    Raises:
        CaptureError: An input was modified in place after the layer had read it.
    """
    uses = []
    for call, columns in zip(calls, gradients, strict=True):
        if call.x._version != call.version:
            raise CaptureError(
                f"the input of layer {layer.spec.name!r} was modified in place after the layer read it; use an out-of-place operation"
            )
        uses.append(_use(layer, call, columns, settings))
    return LayerStatistics(
        spec=layer.spec,
        uses=joined(uses),
        terms=settings.terms,
        reduce=settings.reduce,
        has_weight=layer.weight is not None,
        has_bias=layer.bias is not None,
    )


@dataclass(frozen=True)
class StatisticsSettings:
    """How the calls of this batch become moments: ``M``, the sharing rule, and which part of the batch is used."""

    terms: float | Tensor
    reduce: bool
    subsample: Subsample
    batch: int
    weights: Tensor | None = None
    support: Tensor | None = None
    groups: Tensor | None = None
    num_terms: int = 0

    def slices(self) -> tuple[slice, slice]:
        """The units and positions of this batch; the first one moves with the batch index."""
        units, positions = self.subsample.units, self.subsample.positions
        return slice(self.batch % units, None, units), slice((self.batch // units) % positions, None, positions)


def _use(layer: Layer, call: Call, columns: Sequence[Tensor], settings: StatisticsSettings) -> Use:
    inputs = layer.adapter.call_inputs(call.module, call.x.to(layer.spec.dtype), call.arguments)
    gradients = [layer.adapter.output_gradients(call.module, g) for g in columns]
    if settings.reduce and settings.groups is not None and inputs.units == len(settings.groups):
        inputs = GroupedInputs(inputs, settings.groups, settings.num_terms)
        rows = (g.to(layer.spec.dtype).sum(-2) for g in gradients)
        gradients = [sum_over(g, settings.groups, settings.num_terms).unsqueeze(-2) for g in rows]
    units, positions = inputs.units, inputs.positions
    weights, support = _matching_weights(settings, units, positions)
    chosen, chosen_positions = settings.slices()
    kept = len(range(units)[chosen])
    if settings.reduce or not len(range(positions)[chosen_positions]):
        chosen_positions = slice(None)
    if 0 < kept < units:
        inputs = inputs.subsample(chosen, slice(None))
        gradients = [g[..., chosen, :, :] for g in gradients]
        weights, support = None if weights is None else weights[chosen], None
    else:
        kept = units
    return Use(
        inputs=inputs if layer.weight is not None else None,
        gradients=tuple(gradients),
        units=kept,
        positions=positions,
        fraction=kept / units,
        chosen=slice(None) if len(range(positions)[chosen_positions]) == positions else chosen_positions,
        weights=weights,
        support=support,
    )


def _matching_weights(settings: StatisticsSettings, units: int, positions: int) -> tuple[Tensor | None, Tensor | None]:
    """Weights of the rows ``[N, S]`` of a call and the units in use: those of the terms, if each unit or each row has a term of its own."""
    if settings.weights is None or settings.weights.numel() not in {units, units * positions}:
        return None, None
    weights = settings.weights.reshape(units, -1).expand(units, positions)
    return weights, settings.support if settings.weights.numel() == units else None
