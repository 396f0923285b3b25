"""Sparse matrices that layers take for a tensor: wide, mostly empty features, which are multiplied by weights and never made dense."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


class SparseMatrix(Tensor):
    """A constant sparse matrix ``X: [n, d]`` that knows products with dense matrices, from either side and transposed, and nothing else.

    A linear layer that is called with it computes ``X W^T`` in ``nnz d_out`` multiply-adds, and its weight gradient ``(X^T g)^T`` by a
    transposed copy that is made once; torch's own sparse layouts convert at every backward pass (measured: 10 + 160 ms against 10 + 40 for
    18,333 x 6,805 entries, 0.9 % of them not zero, and 64 outputs). Autograd does not differentiate with respect to it.

    Args:
        store: Its entries.
        flipped: Whether it stands for the transposed entries.
    """

    _store: _Entries
    _flipped: bool

    # What `__torch_dispatch__` does not know is an error, so torch's functions need no second interception.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, store: _Entries, flipped: bool = False) -> SparseMatrix:
        """A tensor without storage, of the shape of the matrix."""
        size = store.size[::-1] if flipped else store.size
        return Tensor._make_wrapper_subclass(cls, size, dtype=store.values.dtype, device=store.values.device)

    def __init__(self, store: _Entries, flipped: bool = False) -> None:
        self._store, self._flipped = store, flipped

    @classmethod
    def of(cls, starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> SparseMatrix:
        """From compressed rows: ``starts: [n + 1]``, ``columns: [nnz]`` ``values: [nnz]``."""
        return cls(_Entries(starts.to(torch.int32), columns.to(torch.int32), values, size))

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseMatrix:
        """The entries of ``x: [n, d]`` that are not zero."""
        row, column = x.nonzero(as_tuple=True)
        return cls.of(_starts(row, x.shape[0]), column, x[row, column], (x.shape[0], x.shape[1]))

    @classmethod
    def from_triplets(cls, row: Tensor, column: Tensor, values: Tensor, size: tuple[int, int]) -> SparseMatrix:
        """From ``[nnz]`` rows, columns and values in any order; double places stay apart, which products add up."""
        order = (row * size[1] + column).argsort(stable=True)
        return cls.of(_starts(row, size[0]), column[order], values[order], size)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseMatrix:
        """Itself: it is constant."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For pickle."""
        return SparseMatrix, (self._store, self._flipped)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch annotates no names
        del tensor_contents
        return f"SparseMatrix({list(self.shape)}, nnz={self.nnz}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def nnz(self) -> int:
        """Number of entries that are kept."""
        return self._store.values.numel()

    @property
    def density(self) -> float:
        """Share of the entries that are kept."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def entries(self) -> Tensor:
        """The values that are kept, ``[nnz]``, row by row."""
        return self._plain.values

    def with_entries(self, values: Tensor) -> SparseMatrix:
        """Other values, ``[nnz]``, at the same places."""
        return SparseMatrix(self._plain.with_values(values))

    def row_sums(self) -> Tensor:
        """``[n]``."""
        store = self._plain
        return store.values.new_zeros(store.size[0]).index_add_(0, store.rows, store.values)

    def scaled_rows(self, scale: Tensor) -> SparseMatrix:
        """``diag(scale) X``, ``scale: [n]``."""
        return self.with_entries(self.entries * scale[self._plain.rows])

    def select(self, index: Tensor) -> SparseMatrix:  # type: ignore[override]
        """The rows with these indices, ``[len(index), d]``."""
        place, column, value = self.pick(index)
        return SparseMatrix.of(_starts(place, len(index)), column, value, (len(index), self.shape[1]))

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of the rows with these indices, repeated where an index is: place in `index`, column and value, ``[entries]`` each."""
        store = self._plain
        first = store.starts[index].long()
        counts = store.starts[index + 1].long() - first
        place = torch.arange(len(index), device=index.device).repeat_interleave(counts)
        within = torch.arange(len(place), device=index.device) - (counts.cumsum(0) - counts)[place]
        found = first[place] + within
        return place, store.columns[found].long(), store.values[found]

    def combine_rows(self, target: Tensor, source: Tensor, weight: Tensor, size: int) -> Tensor:
        """``result[t] = sum_{e: target_e = t} weight_e X[source_e]``, dense ``[size, d]``; cost that of the entries met."""
        place, column, value = self.pick(source)
        d = self.shape[1]
        result = self.entries.new_zeros(size * d)
        return result.index_add_(0, target[place] * d + column, weight[place] * value).view(size, d)

    def dense(self) -> Tensor:
        """As an ordinary tensor."""
        matrix: Tensor = self._csr.to_dense()
        return matrix

    @property
    def _plain(self) -> _Entries:
        return self._store.transposed if self._flipped else self._store

    @property
    def _csr(self) -> Tensor:
        return self._plain.csr

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's annotation lacks the class and the function
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operations that layers and autograd need; any other one is an error that says so."""
        del types
        known = _OPERATIONS.get(func)
        if known is None:
            raise TypeError(
                f"sparse features can be multiplied by a matrix (a linear layer) and no more, but {func} was called; use dense features "
                "(data.features: dense) for a model that does anything else to its inputs first"
            )
        return known(*args, **(kwargs or {}))


class _Entries:
    """Compressed rows, with the transposed ones once they are asked for; shared by all views of a matrix."""

    def __init__(self, starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> None:
        self.starts, self.columns, self.values, self.size = starts, columns, values, size

    @functools.cached_property
    def csr(self) -> Tensor:
        """As torch's layout."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Sparse (CSR|invariant)")
            return torch.sparse_csr_tensor(self.starts, self.columns, self.values, size=self.size, check_invariants=False)

    @functools.cached_property
    def rows(self) -> Tensor:
        """Row of each entry, ``[nnz]``."""
        counts = (self.starts[1:] - self.starts[:-1]).long()
        return torch.arange(self.size[0], device=counts.device).repeat_interleave(counts)

    @functools.cached_property
    def order(self) -> Tensor:
        """Places of the transposed entries, ``[nnz]``."""
        return self.columns.argsort(stable=True)

    @functools.cached_property
    def transposed(self) -> _Entries:
        """``[d, n]``."""
        columns = self.columns[self.order]
        starts = _starts(columns, self.size[1]).to(torch.int32)
        made = _Entries(starts, self.rows[self.order].to(torch.int32), self.values[self.order], self.size[::-1])
        made.__dict__["transposed"] = self
        return made

    def with_values(self, values: Tensor) -> _Entries:
        """Other values at the same places; what was found about the places is kept."""
        made = _Entries(self.starts, self.columns, values, self.size)
        made.__dict__.update({name: self.__dict__[name] for name in ("rows", "order") if name in self.__dict__})
        return made

    def to(self, dtype: torch.dtype, device: torch.device) -> _Entries:
        """In another dtype, on another device."""
        return _Entries(self.starts.to(device), self.columns.to(device), self.values.to(device, dtype), self.size)


def _starts(rows: Tensor, size: int) -> Tensor:
    """Where each row begins, ``[size + 1]``, from the row of each entry."""
    counts = torch.bincount(rows.long(), minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if isinstance(a, SparseMatrix) and not isinstance(b, SparseMatrix):
        return torch.mm(a._csr, b)
    if isinstance(b, SparseMatrix) and not isinstance(a, SparseMatrix):
        return torch.mm(_t(b)._csr, a.mT).mT
    raise TypeError("the product of two sparse matrices is not supported; call dense() on one of them")


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _mm(a, b).mul(alpha).add(bias, alpha=beta)


def _t(x: SparseMatrix) -> SparseMatrix:
    return SparseMatrix(x._store, not x._flipped)


def _same(x: SparseMatrix, **_: Any) -> SparseMatrix:
    return SparseMatrix(x._store, x._flipped)


def _to_copy(x: SparseMatrix, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any) -> SparseMatrix:
    return SparseMatrix(x._store.to(dtype or x.dtype, torch.device(device or x.device)), x._flipped)


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.t.default: _t,
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.clone.default: _same,
    _aten._to_copy.default: _to_copy,
}
