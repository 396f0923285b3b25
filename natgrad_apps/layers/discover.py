"""Finds the layers of a model: which parameters form which weight matrix, and which parameters no adapter covers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import natgrad_apps.layers as package
from natgrad_apps.errors import ConfigError
from natgrad_apps.layers.base import Composite, LayerAdapter
from natgrad_apps.registry import available
from natgrad_apps.types import BlockSpec

# Modules that read their children's parameters without calling the children, so that hooks on the children would never fire.
OPAQUE = (nn.MultiheadAttention,)


@dataclass(frozen=True)
class Layer:
    """One weight matrix with every module that uses it.

    Attributes:
        spec: Sizes.
        adapter: Canonical form of its modules.
        modules: The modules that use the parameters; more than one when parameters are tied.
        weight: The trainable weight, or None (then the only column is the bias).
        bias: The trainable bias, or None.
    """

    spec: BlockSpec
    adapter: LayerAdapter
    modules: tuple[nn.Module, ...]
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable parameters of the matrix."""
        return tuple(p for p in (self.weight, self.bias) if p is not None)

    def to_matrix(self, values: Sequence[Tensor]) -> Tensor:
        """Tensors shaped like `parameters` as one matrix ``[*K, d_out, d_in]`` (a copy if there is a bias column to append)."""
        module, remaining = self.modules[0], list(values)
        parts = []
        if self.weight is not None:
            parts.append(self.adapter.weight_to_matrix(module, remaining.pop(0)))
        if self.bias is not None:
            parts.append(self.adapter.bias_to_matrix(module, remaining.pop(0)))
        matrix = parts[0] if len(parts) == 1 else torch.cat([p.to(self.spec.dtype) for p in parts], dim=-1)
        return matrix.to(self.spec.dtype)

    def from_matrix(self, matrix: Tensor) -> list[Tensor]:
        """Inverse of `to_matrix`: views shaped like `parameters`."""
        module, values = self.modules[0], []
        if self.weight is not None:
            columns = matrix if self.bias is None else matrix[..., :-1]
            values.append(self.adapter.matrix_to_weight(module, columns).reshape(self.weight.shape))
        if self.bias is not None:
            values.append(matrix[..., -1].reshape(self.bias.shape))
        return values


@dataclass(frozen=True)
class Discovery:
    """Layers of a model, and the trainable parameters outside them, by name."""

    layers: tuple[Layer, ...]
    uncovered: tuple[tuple[str, nn.Parameter], ...]


_registered: dict[type[LayerAdapter], LayerAdapter] = {}


def register(adapter: type[LayerAdapter]) -> type[LayerAdapter]:
    """Add an adapter of an application, which goes before those of this folder; a decorator. Doing it twice changes nothing."""
    _registered.setdefault(adapter, adapter())
    return adapter


@cache
def _adapters() -> tuple[LayerAdapter, ...]:
    return tuple(cls() for cls in available(package, LayerAdapter).values())  # type: ignore[type-abstract]


@cache
def _composites() -> tuple[type[Composite], ...]:
    return tuple(available(package, Composite).values())  # type: ignore[type-abstract]


def composite_of(module: nn.Module) -> Composite | None:
    """A module with several weight matrices taken apart, None if it has one or is not known; subclasses as in `adapter_for`."""
    for cls in _composites():
        if any(_is_one(module, known) for known in cls.module_types):
            return cls(module)
    return None


def adapter_for(module: nn.Module) -> LayerAdapter | None:
    """The adapter of a module, or None. A subclass counts only if it keeps the forward method of the class that the adapter knows."""
    for adapter in (*_registered.values(), *_adapters()):
        if any(_is_one(module, known) for known in adapter.module_types) and adapter.covers(module):
            return adapter
    return None


def _is_one(module: nn.Module, known: type[nn.Module]) -> bool:
    return type(module) is known or (isinstance(module, known) and type(module).forward is known.forward)


def clean_name(name: str) -> str:
    """A module or parameter path without the prefixes that `torch.compile` inserts."""
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod")


def _visible_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with their paths, parts instead of composites, without children of opaque modules and those that an adapter takes over."""
    hidden: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in hidden:
            continue
        composite = composite_of(module)
        if composite is not None:
            yield from ((f"{name}.{part}" if name else part, composite.parts[part]) for part in composite.parts)
            continue
        adapter = adapter_for(module)
        if isinstance(module, OPAQUE):
            hidden.update(id(child) for child in module.modules())
        elif adapter is not None:
            hidden.update(id(child) for child in adapter.children(module))
        yield name, module


def _trainable(parameter: object) -> nn.Parameter | None:
    return parameter if isinstance(parameter, nn.Parameter) and parameter.requires_grad else None


@dataclass
class _Uses:
    """Modules that use one parameter, in order, and the parameter's partner (bias of a weight) in each."""

    modules: list[tuple[str, nn.Module, LayerAdapter]]
    partners: list[nn.Parameter | None]


def discover(model: nn.Module) -> Discovery:
    """Group the trainable parameters of a model into layers.

    A weight and a bias form one matrix when every module that uses one uses the other. When a weight is tied but the
    biases differ, the weight and each bias become matrices of their own. A parameter that also belongs to a module
    without an adapter (an embedding tied to a linear layer, say) is left uncovered.

    Raises:
        ConfigError: The model has no trainable parameter, or a lazy parameter that has no shape yet.
    """
    weights: dict[nn.Parameter, _Uses] = {}
    biases: dict[nn.Parameter, _Uses] = {}
    foreign: set[nn.Parameter] = set()
    for name, module in _visible_modules(model):
        adapter = adapter_for(module)
        if adapter is None:
            own = module.parameters() if isinstance(module, OPAQUE) else module.parameters(recurse=False)
            foreign.update(own)
            continue
        weight, bias = _trainable(adapter.weight(module)), _trainable(adapter.bias(module))
        taken = {p for child in (module, *adapter.children(module)) for p in child.parameters(recurse=False)}
        foreign.update(taken - {weight, bias})
        for table, parameter, partner in ((weights, weight, bias), (biases, bias, weight)):
            if parameter is not None:
                uses = table.setdefault(parameter, _Uses([], []))
                uses.modules.append((clean_name(name), module, adapter))
                uses.partners.append(partner)

    layers: list[Layer] = []
    joined: set[nn.Parameter] = set()
    for weight, uses in weights.items():
        if weight in foreign or not _same_geometry(uses):
            continue
        bias = uses.partners[0]
        together = bias is not None and all(p is bias for p in uses.partners) and len(biases[bias].modules) == len(uses.modules)
        whole = together and bias not in foreign
        layers.append(_layer(uses, weight, bias if whole else None))
        joined.update(p for p in (weight, bias if whole else None) if p is not None)
    for bias, uses in biases.items():
        if bias not in joined and bias not in foreign and _same_geometry(uses):
            layers.append(_layer(uses, None, bias))
            joined.add(bias)

    uncovered = tuple((clean_name(n), p) for n, p in model.named_parameters() if p.requires_grad and p not in joined)
    if not layers and not uncovered:
        raise ConfigError(f"{type(model).__name__} has no trainable parameter; set requires_grad=True on what should be trained")
    for name, parameter in uncovered:
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ConfigError(f"parameter {name!r} is lazy and has no shape yet; run one forward pass before building the optimizer")
    return Discovery(tuple(_unique_names(layers)), uncovered)


def _same_geometry(uses: _Uses) -> bool:
    first = uses.modules[0]
    return all(a is first[2] and a.geometry(m) == first[2].geometry(first[1]) for _, m, a in uses.modules)


def _layer(uses: _Uses, weight: nn.Parameter | None, bias: nn.Parameter | None) -> Layer:
    name, module, adapter = uses.modules[0]
    geometry = adapter.geometry(module)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ConfigError(f"layer {name!r} is lazy and has no shape yet; run one forward pass before building the optimizer")
    reference = weight if weight is not None else bias
    assert reference is not None
    split = adapter.bias(module) is not None and (weight is None or bias is None)
    suffix = (".weight" if weight is not None else ".bias") if split else ""
    spec = BlockSpec(
        name=(name or type(module).__name__) + suffix,
        kind=type(adapter).__name__.removesuffix("Adapter").lower(),
        lead=geometry.lead,
        d_out=int(geometry.d_out),  # sizes may be numbers of numpy, which checkpoints refuse
        d_in=int(geometry.d_in if weight is not None else 0) + (bias is not None),
        dtype=statistics_dtype(reference),
        device=reference.device,
    )
    return Layer(spec, adapter, tuple(m for _, m, _ in uses.modules), weight, bias)


def _unique_names(layers: list[Layer]) -> list[Layer]:
    seen: dict[str, int] = defaultdict(int)
    for layer in layers:
        seen[layer.spec.name] += 1
    duplicates = [name for name, count in seen.items() if count > 1]
    assert not duplicates, f"block names must be unique, got {duplicates} twice"
    return layers


def statistics_dtype(parameter: Tensor) -> torch.dtype:
    """float64 parameters keep float64 statistics; everything else, half precision included, has float32 ones."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
