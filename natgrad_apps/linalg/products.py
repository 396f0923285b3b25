"""Matrix products for statistics: symmetric ones at half the multiplications, and float32 ones by the fastest library at hand.

On CPU, torch sends float32 products to MKL, which stays with 256-bit instructions on other makers' processors; oneDNN
uses 512-bit ones wherever they exist (measured on an AMD EPYC with AVX-512, one thread: 100 against 220 GFLOP/s).
`matmul_nt` takes the oneDNN kernel that compiled models use, where there is one, and `torch.matmul` everywhere else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

# A general product by oneDNN pays from about this many multiply-adds, a symmetric one (more calls, a transposed copy) from
# the second.
_PRODUCT_WORK = 2**21
_SYMMETRIC_WORK = 2**25
# Columns of a symmetric product that are computed together: narrower strips waste fewer products, wider ones run faster.
_STRIP = 128
# Without oneDNN, strips pay from these sizes.
_PLAIN_WIDTH, _PLAIN_ROWS = 384, 256
# On CUDA, launches and partial waves cost more than the saved half below this width.
_CUDA_WIDTH, _CUDA_STRIP = 8192, 2048
# Rows that are transposed at a time, so that the copy is still in cache when it is multiplied.
_CHUNK = 4096


def matmul_nt(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x y^T`` over the last two dimensions: ``[..., m, k], [..., n, k] -> [..., m, n]``.

    Fastest on CPU for contiguous matrices. With a symmetric ``B``, ``A B`` is ``matmul_nt(A, B)``, without a transposed copy.
    """
    onednn = _onednn(x, y)
    if onednn is None or x.dim() != 2 or y.dim() != 2 or x.shape[0] * x.shape[1] * y.shape[0] < _PRODUCT_WORK:
        return torch.matmul(x, y.mT)
    # Another layout would silently take a reference kernel, hundreds of times slower.
    return onednn(x.contiguous(), y.contiguous())


def gram(x: Tensor, rows: int = 1) -> Tensor:
    """Return ``x^T x``, exactly symmetric: ``[..., R, d] -> [..., d, d]``.

    Cost ``R d^2`` multiply-adds for each matrix, about half of it where `d` is large.

    Args:
        x: Rows in the last but one dimension.
        rows: Dimensions before the last that count rows; ``gram(x, rows=2)`` is ``gram(x.flatten(-3, -2))`` without that copy.
    """
    lead, d = x.shape[: -rows - 1], x.shape[-1]
    count = math.prod(x.shape[-rows - 1 : -1])
    fast = x.device.type == "cpu" and d >= 96 and count * d * d >= _SYMMETRIC_WORK and _onednn(x) is not None
    if not fast:
        return _plain_gram(x.flatten(-rows - 1, -2) if rows > 1 else x)
    columns = x.movedim(-1, -rows - 1)
    if not lead:
        return _chunked_gram(columns)
    flat = columns.reshape(-1, *columns.shape[len(lead) :])
    return torch.stack([_chunked_gram(single) for single in flat]).reshape(*lead, d, d)


def gram_nt(columns: Tensor) -> Tensor:
    """Return ``y y^T`` of one matrix, ``[d, k] -> [d, d]``, exactly symmetric; contiguous, this is the best layout for `gram` on CPU."""
    return _mirror(_upper(columns, columns.new_empty(columns.shape[0], columns.shape[0]), add=False))


def _chunked_gram(columns: Tensor) -> Tensor:
    """``sum_r c_r c_r^T`` of a view ``[d, *rows]``, a contiguous copy of some rows at a time."""
    d = columns.shape[0]
    result = columns.new_empty(d, d)
    step = max(1, _CHUNK // max(1, math.prod(columns.shape[2:])))
    for i, chunk in enumerate(columns.split(step, dim=1)):
        _upper(chunk.reshape(d, -1).contiguous(), result, add=i > 0)
    return _mirror(result)


def _upper(columns: Tensor, result: Tensor, add: bool) -> Tensor:
    """Put the block upper triangle of ``columns columns^T`` into `result`, or add it."""
    width = _CUDA_STRIP if columns.is_cuda else _STRIP
    for start in range(0, columns.shape[0], width):
        block = matmul_nt(columns[start : start + width], columns[start:])
        target = result[start : start + width, start:]
        if add:
            target += block
        else:
            target.copy_(block)
    return result


def _mirror(result: Tensor) -> Tensor:
    """Make the block lower triangle the transpose of the upper one, and the diagonal blocks symmetric, in place."""
    width = _CUDA_STRIP if result.is_cuda else _STRIP
    for start in range(0, result.shape[-1], width):
        stop = start + width
        corner = result[..., start:stop, start:stop]
        corner.copy_((corner + corner.mT).mul_(0.5))
        result[..., stop:, start:stop] = result[..., start:stop, stop:].mT
    return result


def _plain_gram(x: Tensor) -> Tensor:
    rows, d = x.shape[-2:]
    strip = 0
    if x.requires_grad and torch.is_grad_enabled():
        pass  # autograd has no formula for products into slices
    elif x.device.type == "cpu" and d >= _PLAIN_WIDTH and rows >= _PLAIN_ROWS:
        strip = _STRIP
    elif x.is_cuda and d >= _CUDA_WIDTH:
        strip = _CUDA_STRIP
    if not strip:
        product = torch.matmul(x.mT, x)
        return (product + product.mT).mul_(0.5)
    result = x.new_empty(*x.shape[:-2], d, d)
    for start in range(0, d, strip):
        stop = min(start + strip, d)
        torch.matmul(x[..., start:stop].mT, x[..., start:], out=result[..., start:stop, start:])
    return _mirror(result)


def _onednn(*factors: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The oneDNN product ``x y^T`` if it can be used for these tensors."""
    for x in factors:
        if x.device.type != "cpu" or x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
            return None
    if torch.compiler.is_compiling() or not torch.backends.mkldnn.enabled:
        return None
    return _load_onednn()


@functools.cache
def _load_onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The kernel that inductor uses for linear layers, checked once on a small product; None where this build or processor lacks it."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    try:
        op = torch.ops.mkldnn._linear_pointwise.default
        x = torch.arange(6.0).reshape(2, 3)
        matches = torch.equal(op(x, x, None, "none", [], ""), x @ x.mT)
    except (AttributeError, RuntimeError):
        return None
    if not matches:
        return None

    def product(x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = op(x, y, None, "none", [], "")
        return result

    return product
