"""Second moments of patches, ``A = sum_t a_t a_t^T``, without materialising all patches.

Patches overlap, so most entries of ``A`` are sums of the same products. Let ``P_u`` be the input rows ``u s .. u s + s - 1``
(``s`` is the stride along the first spatial dimension) with only the *other* dimensions unfolded. A patch at output row
``t`` is the stack of ``P_t, P_{t+1}, ...``, and the block of ``A`` for its parts ``i`` and ``i + D`` is

    A[i, i + D] = sum_{t} P_{t+i} P_{t+i+D}^T = sum_{u = i}^{i + T - 1} P_u P_{u+D}^T

for ``T`` output rows: each product ``P_u P_{u+D}^T`` is computed once and enters the block of every ``i`` whose range holds
``u``. Sums are only added up, never subtracted, so the rounding is that of the plain product. With ``q`` parts the
multiplications are about ``1/q`` of the plain product's (``q = 3`` for 3x3 at stride 1, 2 for 8x8 at stride 4), and so is the
memory traffic of the patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from natgrad_apps.layers._window import Window
from natgrad_apps.linalg.products import matmul_nt, mirror, upper_gram_nt

# Columns of patches that are copied and multiplied at a time on CPU: long enough for the product, short enough for the cache.
_COLUMNS = 4096
_CACHED = 2**19  # elements
# Elements of patches that are held at a time on other devices.
_DEVICE_ELEMENTS = 2**26


def second_moment(x: Tensor, window: Window, method: str | None = None) -> Tensor:
    """Sum over units and output positions of ``a a^T``.

    Cost with ``d = d_in``: `direct` ``N S d^2 / 2`` multiply-adds (float32 on CPU; the full ``N S d^2`` on CUDA) and ``N S d``
    copied elements; `by_rows` about ``1/q`` of both. Memory: chunks of patches, and the result.

    Args:
        x: The input with its padding, ``[N, C, *padded]``.
        window: Geometry, without padding.
        method: ``"direct"`` or ``"rows"``; the cheaper one by default.

    Returns:
        ``[K, d_in, d_in]``, exactly symmetric, with ``K = window.groups``.
    """
    if not x.numel() or min(window.output_size(x.shape[2:])) < 1:
        d = x.shape[1] // window.groups * math.prod(window.kernel)
        return x.new_zeros(window.groups, d, d)
    x, window = _without_common_steps(x, window)
    plan = _RowPlan.of(x, window)
    if method is None:
        method = "rows" if plan is not None and _cost_by_rows(x, window, plan) < _cost_direct(x, window) else "direct"
    if method == "direct":
        return _direct(x, window)
    if plan is None:
        raise ValueError("rows need a kernel of two or more taps along the first dimension, and stride or dilation 1 there")
    return _by_rows(x, window, plan)


@dataclass(frozen=True)
class _RowPlan:
    """How the first spatial dimension is cut into blocks of ``s`` rows.

    Attributes:
        size: Rows of a block: the stride.
        parts: Blocks that a patch touches, ``q``.
        step: Distance in blocks between neighboring parts: the dilation.
        starts: Output positions along the dimension, ``T``.
    """

    size: int
    parts: int
    step: int
    starts: int

    @property
    def blocks(self) -> int:
        """Number of blocks that some patch touches."""
        return self.starts + (self.parts - 1) * self.step

    @classmethod
    def of(cls, x: Tensor, window: Window) -> _RowPlan | None:
        """The plan, or None where patches share no rows, or blocks would be cut apart (stride and dilation without a common factor)."""
        kernel, stride, dilation = window.kernel[0], window.stride[0], window.dilation[0]
        parts = -(-kernel // stride)
        if parts < 2 or (stride > 1 and dilation > 1):
            return None
        return cls(stride, parts, dilation, window.output_size(x.shape[2:])[0])

    def view(self, x: Tensor, window: Window) -> Tensor:
        """``P_u`` for all blocks ``u``: ``[blocks, K, c, size, *kernel[1:], N, *output[1:]]``, a view of the input or of a padded copy."""
        rows = self.blocks * self.size
        if rows > x.shape[2]:  # the last block is longer than the kernel; what is added meets no tap
            x = F.pad(x, [0, 0] * (window.dims - 1) + [0, rows - x.shape[2]])
        n, channels, others = x.shape[0], x.shape[1], window.dims - 1
        v = window.view(x[:, :, :rows], start=1)
        v = v.reshape(n, window.groups, channels // window.groups, self.blocks, self.size, *v.shape[3:])
        return v.permute(3, 1, 2, 4, *range(5 + others, 5 + 2 * others), 0, *range(5, 5 + others))


def _by_rows(x: Tensor, window: Window, plan: _RowPlan) -> Tensor:
    rest = math.prod(window.output_size(x.shape[2:])[1:])
    width = x.shape[1] // window.groups * plan.size * math.prod(window.kernel[1:])
    sums = x.new_zeros(plan.parts, plan.parts, window.groups, width, width)
    if x.device.type == "cpu":
        add, columns = _add_rows_in_turn, _COLUMNS
    else:
        add, columns = _add_rows_at_once, _DEVICE_ELEMENTS // (plan.blocks * window.groups * width)
    for chunk in x.split(_even_share(x.shape[0], columns / rest)):
        add(sums, plan.view(chunk.contiguous(), window), plan)
    for i in range(plan.parts):
        mirror(sums[i, i])
        for j in range(i):
            sums[i, j] = sums[j, i].mT
    return _in_order_of_weights(sums, x.shape[1] // window.groups, window, plan)


def _add_rows_in_turn(sums: Tensor, view: Tensor, plan: _RowPlan) -> None:
    """One block at a time, so that only `parts` blocks are copied out at once and stay in cache."""
    groups, width = sums.shape[2:4]
    held: dict[int, Tensor] = {}
    for u in range(plan.blocks):
        held[u] = view[u].reshape(groups, width, -1)
        held.pop(u - (plan.parts - 1) * plan.step - 1, None)
        for distance in range(plan.parts):
            first = u - distance * plan.step
            entered = [i for i in range(plan.parts - distance) if i * plan.step <= first < i * plan.step + plan.starts]
            if not entered:
                continue
            product = upper_gram_nt(held[u]) if distance == 0 else matmul_nt(held[first], held[u])
            for i in entered:
                sums[i, i + distance] += product


def _add_rows_at_once(sums: Tensor, view: Tensor, plan: _RowPlan) -> None:
    """One batched product for each distance."""
    groups, width = sums.shape[2:4]
    rows = view.reshape(plan.blocks, groups, width, -1)
    for distance in range(plan.parts):
        shift = distance * plan.step
        products = torch.matmul(rows[: plan.blocks - shift], rows[shift:].mT)
        for i in range(plan.parts - distance):
            sums[i, i + distance] += products[i * plan.step : i * plan.step + plan.starts].sum(0)


def _in_order_of_weights(sums: Tensor, channels: int, window: Window, plan: _RowPlan) -> Tensor:
    """``[parts, parts, K, width, width]`` to ``[K, d_in, d_in]``: channels, then taps; taps beyond the kernel are dropped."""
    side = (channels, plan.size, math.prod(window.kernel[1:]))
    taps, groups = plan.parts * plan.size, window.groups
    full = sums.reshape(plan.parts, plan.parts, groups, *side, *side).permute(2, 3, 0, 4, 5, 6, 1, 7, 8)
    full = full.reshape(groups, channels, taps, side[2], channels, taps, side[2])
    d = channels * window.kernel[0] * side[2]
    return full[:, :, : window.kernel[0], :, :, : window.kernel[0]].reshape(groups, d, d)


def _direct(x: Tensor, window: Window) -> Tensor:
    """Patches of some units and groups at a time, and their products."""
    positions = math.prod(window.output_size(x.shape[2:]))
    channels = x.shape[1] // window.groups
    d, dims = channels * math.prod(window.kernel), window.dims
    cpu = x.device.type == "cpu"
    columns = max(1, _COLUMNS // positions) * positions
    groups = max(1, min(window.groups, (_CACHED if cpu else _DEVICE_ELEMENTS) // (d * columns)))
    units = _even_share(x.shape[0], (_COLUMNS if cpu else _DEVICE_ELEMENTS // (d * groups)) / positions)
    sums = x.new_zeros(window.groups, d, d)
    for start in range(0, window.groups, groups):
        some = x[:, start * channels : (start + groups) * channels]
        for chunk in some.split(units):
            patches = window.view(chunk.contiguous()).permute(1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
            sums[start : start + groups] += upper_gram_nt(patches.reshape(-1, d, chunk.shape[0] * positions))
    return mirror(sums)


def _even_share(units: int, wanted: float) -> int:
    """Units of a chunk, near `wanted`, that cut all units into chunks of nearly equal size."""
    return math.ceil(units / max(1, round(units / max(1.0, wanted))))


def _without_common_steps(x: Tensor, window: Window) -> tuple[Tensor, Window]:
    """Drop the rows that no tap meets because stride and dilation have a common factor."""
    common = window.stride[0] if window.kernel[0] == 1 else math.gcd(window.stride[0], window.dilation[0])
    if common == 1:
        return x, window
    first = (window.stride[0] // common,), (max(1, window.dilation[0] // common),)
    return x[:, :, ::common], Window(
        window.kernel, first[0] + window.stride[1:], first[1] + window.dilation[1:], window.padding, window.mode, window.groups
    )


# A cost model in nanoseconds, fitted to one thread of an AMD EPYC with AVX-512; only the ratio of two costs matters. It chose the
# cheaper method in 25 of 28 layers, and one within 7 % of it in the others.
_COPY = 0.5  # an element of a patch
_ADD = 0.4  # an element of a result that is added to a sum
_CALL = 12e3  # a product
_RATE, _HALF_RATE_WIDTH = 220.0, 32  # a wide product's floating-point operations per nanosecond; the width that reaches half of them


def _cost_of_product(width: int, columns: int, *, symmetric: bool) -> float:
    work = width * (width + min(width, 128)) if symmetric else 2 * width * width
    return work * columns * (width + _HALF_RATE_WIDTH) / (_RATE * width)


def _cost_direct(x: Tensor, window: Window) -> float:
    d = x.shape[1] // window.groups * math.prod(window.kernel)
    columns = x.shape[0] * math.prod(window.output_size(x.shape[2:]))
    chunks = -(-columns // _COLUMNS)
    each = _cost_of_product(d, columns, symmetric=True) + _COPY * d * columns + _ADD * chunks * d * d
    return window.groups * each + _CALL * chunks * (window.groups * max(1, d // 128) if d > 96 else 1)


def _cost_by_rows(x: Tensor, window: Window, plan: _RowPlan) -> float:
    width = x.shape[1] // window.groups * plan.size * math.prod(window.kernel[1:])
    columns = x.shape[0] * math.prod(window.output_size(x.shape[2:])[1:])
    chunks = -(-columns // _COLUMNS)
    cost = window.groups * _COPY * width * columns * plan.blocks
    for distance in range(plan.parts):
        each = _cost_of_product(width, columns, symmetric=distance == 0) + _ADD * chunks * width * width * (1 + plan.parts - distance)
        calls = _CALL * chunks * (window.groups if width > 96 else 1)
        cost += (plan.blocks - distance * plan.step) * (window.groups * each + calls)
    return cost
