"""The blocks of a model: each layer's weight matrix, and each bare parameter, with its curvature and state."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from natgrad_apps.curvature.base import Curvature
from natgrad_apps.curvature.diagonal import Diagonal
from natgrad_apps.errors import ConfigError, UnsupportedLayerError, UnsupportedLayerWarning
from natgrad_apps.layers.discover import Layer, clean_name, discover, statistics_dtype
from natgrad_apps.types import BlockSpec, State


@dataclass(frozen=True)
class Block:
    """A layer or a bare parameter.

    Attributes:
        curvature: Approximation of this block; bare parameters have `Diagonal`.
        parameters: Its parameters, in the order of `values`.
        layer: None for a bare parameter.
        state: What the curvature knows.
    """

    curvature: Curvature
    parameters: tuple[nn.Parameter, ...]
    layer: Layer | None
    state: State

    @property
    def spec(self) -> BlockSpec:
        """Sizes and name."""
        return self.state.spec

    def to_matrix(self, values: Sequence[Tensor]) -> Tensor:
        """Values of `parameters` as ``[*K, d_out, d_in]`` in the dtype of the statistics."""
        if self.layer is not None:
            return self.layer.to_matrix(values)
        return values[0].to(self.spec.dtype).reshape(self.spec.shape)

    def from_matrix(self, matrix: Tensor) -> list[Tensor]:
        """Inverse of `to_matrix`, in the dtype of the parameters."""
        values = self.layer.from_matrix(matrix) if self.layer is not None else [matrix.reshape(self.parameters[0].shape)]
        return [v.to(p.dtype) for v, p in zip(values, self.parameters, strict=True)]


class Blocks(Mapping[str, Block]):
    """The blocks of a model by name: layers first, then bare parameters.

    Args:
        model: The model; it is only read.
        curvature: Approximation of the layers.
        strict: Whether a parameter without a layer is an error.
    """

    def __init__(self, model: nn.Module, curvature: Curvature, *, strict: bool) -> None:
        found = discover(model)
        self._curvature, self._strict, self._warned = curvature, strict, False
        self._names = {parameter: clean_name(name) for name, parameter in model.named_parameters()}
        self._blocks = {layer.spec.name: self._layer_block(layer) for layer in found.layers}
        for _, parameter in found.uncovered:
            self._add_bare(parameter)

    def __getitem__(self, name: str) -> Block:
        """The block of this name."""
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        """Names in a fixed order."""
        return iter(self._blocks)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def layers(self) -> list[Layer]:
        """The layers."""
        return [block.layer for block in self._blocks.values() if block.layer is not None]

    @property
    def bare(self) -> list[Block]:
        """The bare parameters."""
        return [block for block in self._blocks.values() if block.layer is None]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every trainable parameter, in the order of the blocks."""
        return [p for block in self._blocks.values() for p in block.parameters]

    def _layer_block(self, layer: Layer) -> Block:
        return Block(self._curvature, layer.parameters, layer, self._curvature.init(layer.spec))

    def _add_bare(self, parameter: nn.Parameter) -> None:
        spec = BlockSpec(self._names[parameter], "parameter", (), 1, parameter.numel(), statistics_dtype(parameter), parameter.device)
        fallback = Diagonal(decay=self._curvature.decay)
        self._blocks[spec.name] = Block(fallback, (parameter,), None, fallback.init(spec))

    def make_bare(self, name: str) -> None:
        """Turn a layer whose module is never called, only read, into bare parameters."""
        for parameter in self._blocks.pop(name).parameters:
            self._add_bare(parameter)
        self._warned = False

    def report(self, known: Collection[int]) -> None:
        """Warn once about the parameters that use the diagonal fallback.

        Args:
            known: Identities of parameters whose Fisher the likelihood knows in closed form; they are not mentioned.

        Raises:
            UnsupportedLayerError: There is one, under ``strict=True``.
        """
        if self._warned:
            return
        self._warned = True
        found = [block for block in self.bare if id(block.parameters[0]) not in known]
        if not found:
            return
        total = sum(p.numel() for p in self.parameters)
        share = 100.0 * sum(block.parameters[0].numel() for block in found) / total
        names = ", ".join(block.spec.name for block in found)
        message = f"{len(found)} parameters ({share:.3g}% of {total} weights) have no layer adapter: {names}"
        if self._strict:
            raise UnsupportedLayerError(f"{message}; freeze them, use supported layers, or pass strict=False for the diagonal fallback")
        message += "; they use the diagonal Fisher fallback (strict=True makes this an error)"
        warnings.warn(message, UnsupportedLayerWarning, stacklevel=4)

    def state_dict(self) -> dict[str, dict[str, object]]:
        """Counts, moments and caches of every block."""
        return {
            name: {
                "shape": list(block.spec.shape),
                "curvature": type(block.curvature).__name__,
                "count": block.state.count,
                "moments": dict(block.state.moments),
                "cache": dict(block.state.cache),
            }
            for name, block in self._blocks.items()
        }

    def load_state_dict(self, saved: Mapping[str, Mapping[str, object]]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: The blocks or their shapes are not those of this model and curvature.
        """
        for name in [n for n in self._blocks if n not in saved and self._blocks[n].layer is not None]:
            # A layer that was turned into bare parameters before the state was saved.
            if all(self._names[p] in saved for p in self._blocks[name].parameters):
                self.make_bare(name)
        missing, unknown = sorted(set(self._blocks) - set(saved)), sorted(set(saved) - set(self._blocks))
        if missing or unknown:
            raise ConfigError(
                f"the saved curvature belongs to another model: blocks missing in it: {missing}, blocks unknown here: {unknown}"
            )
        for name, block in self._blocks.items():
            entry, state, spec = saved[name], block.state, block.spec
            given, own = (entry["curvature"], entry["shape"]), (type(block.curvature).__name__, list(spec.shape))
            if given != own:
                raise ConfigError(
                    f"the saved state of block {name!r} is {given[0]} of shape {given[1]}; this one is {own[0]} of shape {own[1]}"
                )
            for part in ("moments", "cache"):
                values = entry[part]
                assert isinstance(values, Mapping)
                setattr(state, part, {k: v.to(spec.device, spec.dtype, copy=True) for k, v in values.items()})
            count = entry["count"]
            assert isinstance(count, Tensor)
            state.count = count.to(spec.device, spec.dtype, copy=True)
