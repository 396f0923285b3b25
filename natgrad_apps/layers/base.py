"""The contracts of `layers`: how one family of modules becomes the canonical form, and how a fused module is taken apart first.

Canonical form (see ``docs/architecture.md``): inputs ``a: [*K, N, S, d_in]``, output gradients ``g: [*K, N, S,
d_out]``, weight matrix ``W: [*K, d_out, d_in]``. ``K`` is present for grouped layers only. The bias column is *not* an
adapter's business: it is appended downstream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Geometry:
    """Sizes of one module's weight in canonical form.

    Attributes:
        d_in: Columns of the weight matrix, without the bias column.
        d_out: Rows of the weight matrix (of each group).
        groups: Number of groups ``K``; 0 means the layer is not grouped and tensors carry no group dimension.
    """

    d_in: int
    d_out: int
    groups: int = 0

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading shape ``[*K]`` of matrices: ``()`` or ``(groups,)``."""
        return (self.groups,) if self.groups else ()


@dataclass(frozen=True)
class Arguments:
    """What a module was called with."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def get(self, position: int, name: str) -> Any:
        """One argument, None if it was not given."""
        return self.positional[position] if position < len(self.positional) else self.named.get(name)


class LayerInputs(ABC):
    """The inputs of one call of one layer, kept in whatever form makes their moments cheapest.

    Attributes:
        units: ``N``, the leading dimension of the layer's input.
        positions: ``S``, the number of shared positions of each unit.
        chunk: How many units' rows are best formed at a time, where all of them would be far larger than what is kept; None for all.
    """

    units: int
    positions: int
    chunk: int | None = None

    @abstractmethod
    def rows(self) -> Tensor:
        """All inputs, materialised: ``[*K, N, S, d_in]``."""

    def unit_rows(self, units: Tensor) -> Tensor:
        """`rows` of the units with these indices; override where they can be had without the others."""
        return self.rows()[..., units, :, :]

    @abstractmethod
    def second_moment(self) -> tuple[Tensor, Tensor]:
        """Sums over units and positions: ``sum a a^T: [*K, d_in, d_in]`` and ``sum a: [*K, d_in]``."""

    @abstractmethod
    def reduced(self) -> Tensor:
        """Inputs averaged over the positions of each unit: ``[*K, N, d_in]``."""

    @abstractmethod
    def subsample(self, units: slice, positions: slice) -> LayerInputs:
        """The same inputs at every ``units`` and ``positions`` selected; positions are in the row-major order of `rows`."""

    def joined(self, others: Sequence[LayerInputs]) -> LayerInputs | None:
        """These and further calls with the same units as one call, calls as positions; None where that does not make moments cheaper."""
        del others
        return None


class LayerAdapter(ABC):
    """Turns one family of modules into canonical form. Stateless; one instance serves every module of its types.

    The adapters of this folder are found by scanning it; an application registers its own with `natgrad_apps.layers.discover.register`.

    Attributes:
        module_types: The modules it is for.
        input_name: Name of the first argument of their ``forward``, the input.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]]
    input_name: ClassVar[str] = "input"

    def covers(self, module: nn.Module) -> bool:
        """Whether it can serve this module, which is of one of its types."""
        del module
        return True

    def weight(self, module: nn.Module) -> object:
        """The module's weight, which may lie in a child; anything but a parameter counts as none."""
        return module._parameters.get("weight")

    def bias(self, module: nn.Module) -> object:
        """The module's bias; anything but a parameter counts as none."""
        return module._parameters.get("bias")

    def children(self, module: nn.Module) -> Sequence[nn.Module]:
        """Children whose parameters the adapter takes over; they become no layers of their own."""
        del module
        return ()

    @abstractmethod
    def geometry(self, module: nn.Module) -> Geometry:
        """Sizes of the weight matrix."""

    @abstractmethod
    def inputs(self, module: nn.Module, x: Tensor) -> LayerInputs:
        """The inputs of one call, from the tensor that the module received (detached)."""

    def call_inputs(self, module: nn.Module, x: Tensor, arguments: Arguments) -> LayerInputs:
        """`inputs`, for adapters that need further arguments of the call."""
        del arguments
        return self.inputs(module, x)

    @abstractmethod
    def output_gradients(self, module: nn.Module, g: Tensor) -> Tensor:
        """Gradients at the module's output, as ``[*K, N, S, d_out]`` (a view where possible, in the dtype given)."""

    @abstractmethod
    def weight_to_matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """A tensor shaped like ``module.weight`` as ``[*K, d_out, d_in]`` (a view)."""

    @abstractmethod
    def matrix_to_weight(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Inverse of `weight_to_matrix`."""

    def bias_to_matrix(self, module: nn.Module, bias: Tensor) -> Tensor:
        """A tensor shaped like ``module.bias`` as a column ``[*K, d_out, 1]`` (a view)."""
        geometry = self.geometry(module)
        return bias.reshape(*geometry.lead, geometry.d_out, 1)


class Part(nn.Module):
    """One weight matrix of a module that has several, as the linear layer that the module would call if it were made of such.

    It is no submodule of anything and owns no parameter.

    Args:
        composite: The module that it belongs to.
        weight: Name of the weight in that module.
        bias: Name of the bias in that module, None if there is none.
    """

    def __init__(self, composite: Composite, weight: str, bias: str | None) -> None:
        super().__init__()
        self.composite = composite
        self._names = (weight, bias)

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight ``[d_out, d_in]`` and bias ``[d_out]`` as they are now."""
        weight, bias = self._names
        return getattr(self.composite.module, weight), None if bias is None else getattr(self.composite.module, bias)

    def parameters_of_module(self) -> tuple[object, object]:
        """What the module has registered under the names; anything but a parameter counts as none."""
        found = [self.composite.module._parameters.get(name) if name is not None else None for name in self._names]
        return found[0], found[1]

    def forward(self, input: Tensor) -> Tensor:
        """``input W^T + b``."""
        return functional.linear(input, *self.tensors())


class Composite(ABC):
    """A module whose kernel uses several weight matrices at once, and the same computation as calls of its `Part`s.

    During a capture the module's output is replaced by that of `forward`, whose inner calls can be recorded. Subclasses in this folder are
    found by scanning it.

    Args:
        module: The module.

    Attributes:
        module_types: The modules it is for.
        module: The module.
        parts: Its matrices by name.
    """

    module_types: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parts: dict[str, Part] = self.make_parts()

    @abstractmethod
    def make_parts(self) -> dict[str, Part]:
        """One part for each weight matrix."""

    @abstractmethod
    def forward(self, arguments: Arguments) -> Any:
        """The module's output for what it was called with, from calls of the parts."""
