"""Dense float64 oracles. Nothing here imports the package: Jacobians are autograd's, one output at a time.

Notation as in docs/architecture.md: a layer's matrix is ``W: [*K, d_out, d_in]`` with the bias as its last column, ``D = d_out d_in`` in
row-major order, ``M`` likelihood terms with ``E`` outputs each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Root = Tensor
"""``[M, E, C]`` with ``root root^T`` the Fisher of each term with respect to its outputs."""


def categorical_root(logits: Tensor) -> Root:
    """The symmetric root of ``diag(p) - p p^T``."""
    p = logits.detach().flatten(0, -2).double().softmax(-1)
    values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    root: Tensor = vectors * values.clamp_min(0).sqrt().unsqueeze(1)
    return root


def gaussian_root(mean: Tensor, scale: float = 1.0) -> Root:
    """``I / scale``."""
    flat = mean.detach().flatten(0, -2)
    return torch.eye(flat.shape[1], dtype=torch.float64).expand(len(flat), -1, -1) / scale


def bernoulli_root(logits: Tensor) -> Root:
    """``diag(sqrt(p (1 - p)))``."""
    p = logits.detach().flatten(0, -2).double().sigmoid()
    return torch.diag_embed((p * (1 - p)).sqrt())


def score_root(log_prob: Callable[[Tensor], Tensor], outputs: Tensor) -> Root:
    """One column: the score at the targets, for the empirical Fisher; `log_prob` maps outputs to the terms' log-probabilities."""
    leaf = outputs.detach().requires_grad_()
    (score,) = torch.autograd.grad(log_prob(leaf).sum(), leaf)
    return score.flatten(0, -2).unsqueeze(-1)


def jacobian(outputs: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives of every output element, ``[numel, *parameter.shape]`` for each parameter."""
    rows = [torch.autograd.grad(o, parameters, retain_graph=True, allow_unused=True) for o in outputs.flatten()]
    return [torch.stack([torch.zeros_like(p) if row[i] is None else row[i] for row in rows]) for i, p in enumerate(parameters)]


def groups_of(module: nn.Module) -> int:
    """``K``, or 0 for a module without groups."""
    groups = getattr(module, "groups", 1)
    return int(groups) if groups > 1 else 0


def to_matrix(module: nn.Module, weight: Tensor | None, bias: Tensor | None, lead: int = 0) -> Tensor:
    """Tensors shaped like the parameters, with `lead` leading dimensions, as ``[lead, *K, d_out, d_in]``."""
    groups = groups_of(module)
    parts = []
    if weight is not None:
        head = weight.shape[:lead]
        c_out = weight.shape[lead]
        inner = (groups, c_out // groups) if groups else (c_out,)
        parts.append(weight.reshape(*head, *inner, -1))
    if bias is not None:
        head = bias.shape[:lead]
        inner = (groups, bias.shape[lead] // groups) if groups else (bias.shape[lead],)
        parts.append(bias.reshape(*head, *inner, 1))
    return torch.cat(parts, -1)


def layer_jacobian(outputs: Tensor, module: nn.Module) -> Tensor:
    """Jacobian with respect to a layer's matrix: ``[M, E, *K, D]``; outputs ``[*terms, E]``. Frozen parameters are left out."""
    weight, bias = (p if isinstance(p, nn.Parameter) and p.requires_grad else None for p in (module.weight, module.bias))
    present = [p for p in (weight, bias) if p is not None]
    parts = iter(jacobian(outputs, present))
    matrix = to_matrix(module, None if weight is None else next(parts), None if bias is None else next(parts), lead=1)
    flat = matrix.flatten(-2, -1)
    return flat.reshape(-1, outputs.shape[-1], *flat.shape[1:])


def fisher(jac: Tensor, root: Root) -> Tensor:
    """``1/M sum_m J_m^T root_m root_m^T J_m`` for ``J: [M, E, *K, D]``: ``[*K, D, D]``."""
    pulled = torch.einsum("me...d,mec->mc...d", jac, root)
    total: Tensor = torch.einsum("mc...d,mc...f->...df", pulled, pulled)
    return total / jac.shape[0]


def fisher_block(outputs: Tensor, module: nn.Module, root: Root) -> Tensor:
    """The exact Fisher block of one layer, ``[*K, D, D]``."""
    return fisher(layer_jacobian(outputs, module), root)


def full_jacobian(outputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Jacobian with respect to all parameters, flattened and concatenated: ``[M, E, P]``."""
    flat = torch.cat([j.flatten(1) for j in jacobian(outputs, parameters)], 1)
    return flat.reshape(-1, outputs.shape[-1], flat.shape[1])


def block_diagonal(blocks: Tensor) -> Tensor:
    """``[*K, D, D]`` as one matrix."""
    if blocks.ndim == 2:
        return blocks
    joined: Tensor = torch.block_diag(*blocks)
    return joined


def input_rows(module: nn.Module, x: Tensor, *, bias: bool) -> Tensor:
    """A layer's inputs as ``[*K, N, S, d_in]``; patches come from the same convolution with the identity as its kernel."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
    else:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        channels = module.in_channels // module.groups
        width = channels * math.prod(module.kernel_size)
        probe = type(module)(
            module.in_channels,
            module.groups * width,
            module.kernel_size,  # type: ignore[arg-type]
            stride=module.stride,  # type: ignore[arg-type]
            padding=module.padding,  # type: ignore[arg-type]
            dilation=module.dilation,  # type: ignore[arg-type]
            groups=module.groups,
            bias=False,
            padding_mode=module.padding_mode,
        ).to(x.dtype)
        eye = torch.eye(width, dtype=x.dtype).reshape(width, channels, *module.kernel_size)
        with torch.no_grad():
            probe.weight.copy_(eye.repeat(module.groups, *([1] * (eye.ndim - 1))))
            rows = probe(x).flatten(2).unflatten(1, (module.groups, width)).permute(1, 0, 3, 2)
        rows = rows if module.groups > 1 else rows[0]
    return torch.cat([rows, torch.ones_like(rows[..., :1])], -1) if bias else rows


def gradient_rows(module: nn.Module, g: Tensor) -> Tensor:
    """Gradients at a layer's output as ``[*K, N, S, d_out]``."""
    if isinstance(module, nn.Linear):
        return g.reshape(g.shape[0], -1, g.shape[-1])
    groups = int(module.groups)  # type: ignore[arg-type]
    rows = g.reshape(g.shape[0], groups, g.shape[1] // groups, -1).permute(1, 0, 3, 2)
    return rows if groups > 1 else rows[0]


class Recorder:
    """Runs a model and keeps the inputs and outputs of every call of some modules, in order."""

    def __init__(self, model: nn.Module, x: Tensor, modules: Sequence[nn.Module]) -> None:
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.calls.append((module, args[0].detach().clone(), output))

        handles = [module.register_forward_hook(hook) for module in modules]
        self.outputs: Tensor = model(x)
        for handle in handles:
            handle.remove()

    def inputs(self, module: nn.Module) -> Tensor:
        """``a: [*K, N, S, d_in]`` over all calls of a module, calls as further positions."""
        bias = getattr(module, "bias", None) is not None
        return torch.cat([input_rows(m, x, bias=bias) for m, x, _ in self.calls if m is module], -2)

    def gradients(self, module: nn.Module, root: Root) -> Tensor:
        """``g: [C, *K, N, S, d_out]``, one slice for each column of the root."""
        outputs = [y for m, _, y in self.calls if m is module]
        columns = []
        for c in range(root.shape[-1]):
            vector = root[..., c].reshape(self.outputs.shape)
            grads = torch.autograd.grad(self.outputs, outputs, vector, retain_graph=True, materialize_grads=True)
            columns.append(torch.cat([gradient_rows(module, g) for g in grads], -2))
        return torch.stack(columns)


def kfac_factors(a: Tensor, g: Tensor, terms: int, *, reduce: bool = False) -> tuple[Tensor, Tensor]:
    """``A: [*K, d_in, d_in]`` and ``G: [*K, d_out, d_out]`` from ``a: [*K, N, S, d_in]`` and ``g: [C, *K, N, S, d_out]``."""
    if reduce:
        a, g = a.mean(-2, keepdim=True), g.sum(-2, keepdim=True)
    count = a.shape[-2] * a.shape[-3]
    return torch.einsum("...nsi,...nsj->...ij", a, a) / count, torch.einsum("c...nsi,c...nsj->...ij", g, g) / terms


def kron(G: Tensor, A: Tensor) -> Tensor:
    """``G (x) A`` for every group, ``[*K, D, D]``."""
    if G.ndim == 2:
        return torch.kron(G, A)
    return torch.stack([torch.kron(x, y) for x, y in zip(G, A, strict=True)])


def dense_power(matrix: Tensor, power: float) -> Tensor:
    """Symmetric matrix power."""
    values, vectors = torch.linalg.eigh(matrix)
    result: Tensor = vectors @ torch.diag(values**power) @ vectors.mT
    return result
