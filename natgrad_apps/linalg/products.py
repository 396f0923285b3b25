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
_STRIP = 96
# Without oneDNN, strips pay from these sizes.
_PLAIN_WIDTH, _PLAIN_ROWS = 384, 256
# On CUDA, launches and partial waves cost more than the saved half below this width.
_DEVICE_WIDTH, _DEVICE_STRIP = 8192, 2048
# Rows that are transposed at a time, so that the copy is still in cache when it is multiplied.
_CHUNK = 4096


def matmul_nt(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x y^T`` over the last two dimensions: ``[..., m, k], [..., n, k] -> [..., m, n]``.

    Fastest on CPU for contiguous matrices. With a symmetric ``B``, ``A B`` is ``matmul_nt(A, B)``, without a transposed copy.
    """
    onednn = _onednn(x, y)
    if onednn is None or x.shape[:-2] != y.shape[:-2] or x.shape[-2] * x.shape[-1] * y.shape[-2] < _PRODUCT_WORK:
        return torch.matmul(x, y.mT)
    if x.dim() == 3 and x.shape[0] == 1:
        return onednn(x[0].contiguous(), y[0].contiguous()).unsqueeze(0)
    if x.dim() > 2:
        pairs = zip(x.flatten(0, -3), y.flatten(0, -3), strict=True)
        return torch.stack([matmul_nt(left, right) for left, right in pairs]).reshape(*x.shape[:-1], y.shape[-2])
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
    wide = d >= 96 and count * d * d >= _SYMMETRIC_WORK
    # Rows that are laid out as columns, such as gradients [N, c, S] seen as [N, S, c], would be transposed by flattening them.
    columnar = rows > 1 and not lead and x.stride(-1) != 1
    if not (wide or columnar) or _onednn(x) is None:
        return _plain_gram(x.flatten(-rows - 1, -2) if rows > 1 else x)
    columns = x.movedim(-1, -rows - 1)
    if not lead:
        return _chunked_gram(columns)
    flat = columns.reshape(-1, *columns.shape[len(lead) :])
    return torch.stack([_chunked_gram(single) for single in flat]).reshape(*lead, d, d)


def gram_nt(y: Tensor) -> Tensor:
    """Return ``y y^T``, exactly symmetric: ``[..., d, k] -> [..., d, d]``. Contiguous, this is the best layout on CPU."""
    return mirror(upper_gram_nt(y))


def upper_gram_nt(y: Tensor) -> Tensor:
    """Return ``y y^T`` with only the block upper triangle filled, for sums that `mirror` completes: ``[..., d, k] -> [..., d, d]``."""
    d, strip = y.shape[-2], _strip(y)
    if d <= strip:
        return matmul_nt(y, y)
    result = y.new_zeros(*y.shape[:-1], d)
    for start in range(0, d, strip):
        result[..., start : start + strip, start:] = matmul_nt(y[..., start : start + strip, :], y[..., start:, :])
    return result


def mirror(matrix: Tensor) -> Tensor:
    """Make a sum of `upper_gram_nt` symmetric, in place: ``[..., d, d]``."""
    strip = _strip(matrix)
    for start in range(0, matrix.shape[-1], strip):
        stop = start + strip
        corner = matrix[..., start:stop, start:stop]
        corner.copy_((corner + corner.mT).mul_(0.5))
        matrix[..., stop:, start:stop] = matrix[..., start:stop, stop:].mT
    return matrix


def _strip(x: Tensor) -> int:
    return _STRIP if x.device.type == "cpu" else _DEVICE_STRIP


def _chunked_gram(columns: Tensor) -> Tensor:
    """``sum_r c_r c_r^T`` of a view ``[d, *rows]``, a contiguous copy of some rows at a time."""
    d = columns.shape[0]
    step = max(1, _CHUNK // max(1, math.prod(columns.shape[2:])))
    total: Tensor | None = None
    for chunk in columns.split(step, dim=1):
        part = upper_gram_nt(chunk.reshape(d, -1).contiguous())
        total = part if total is None else total.add_(part)
    return mirror(columns.new_zeros(d, d) if total is None else total)


def _plain_gram(x: Tensor) -> Tensor:
    rows, d = x.shape[-2:]
    strip = 0
    if x.requires_grad and torch.is_grad_enabled():
        pass  # autograd has no formula for products into slices
    elif x.device.type == "cpu" and d >= _PLAIN_WIDTH and rows >= _PLAIN_ROWS:
        strip = _STRIP
    elif x.is_cuda and d >= _DEVICE_WIDTH:
        strip = _DEVICE_STRIP
    if not strip:
        product = torch.matmul(x.mT, x)
        return (product + product.mT).mul_(0.5)
    result = x.new_empty(*x.shape[:-2], d, d)
    for start in range(0, d, strip):
        stop = min(start + strip, d)
        torch.matmul(x[..., start:stop].mT, x[..., start:], out=result[..., start:stop, start:])
    return mirror(result)


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
