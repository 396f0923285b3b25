"""True per-example gradients, for any module that `torch.func` can differentiate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from natgrad_apps.errors import ConfigError

# At most this many gradient entries are formed at a time (256 MiB in float32).
CHUNK = 2**26


def check_examples_independent(model: nn.Module) -> None:
    """Raise unless the output of an example is a function of that example alone.

    Raises:
        ConfigError: Batch normalization in training mode couples the examples, and dropout would draw another mask for every pass.
    """
    for name, module in model.named_modules():
        if module.training and (isinstance(module, _BatchNorm) or (isinstance(module, _DropoutNd) and module.p > 0)):
            raise ConfigError(
                f"per-example gradients are not defined with {type(module).__name__} {name!r} in training mode; put it into eval mode, use "
                "LayerNorm or GroupNorm, or take a method on the core (NoisyKFAC, NoisyEKFAC, NoisyAdam)"
            )


def per_example_rows(
    model: nn.Module, parameters: Mapping[str, Tensor], inputs: tuple[Any, ...], cotangents: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Chunks of ``J_n^T v_n`` for the examples ``n``: the gradients of ``v_n . f(x_n)``.

    With ``v_n`` the gradient of ``log p(y_n | f_n)`` at the outputs these are the gradients of the log-likelihood. Shared weights, biases
    of convolutions and normalization layers are exact, because nothing is derived from layer inputs.

    Args:
        model: Gives ``[N, ...]`` for inputs ``[N, ...]``.
        parameters: Where the gradients are wanted, by name.
        inputs: Arguments of the model, each ``[N, ...]``.
        cotangents: ``v: [N, ...]`` in the shape of the outputs.

    Yields:
        Tensors ``[chunk, *parameter.shape]`` by name.

    Raises:
        ConfigError: See `check_examples_independent`.
    """
    check_examples_independent(model)
    values = {name: p.detach() for name, p in parameters.items()}
    rest = {name: p.detach() for name, p in model.named_parameters() if name not in values}
    rest |= {name: b.detach() for name, b in model.named_buffers()}

    def product(own: dict[str, Tensor], v: Tensor, *x: Tensor) -> Tensor:
        output = functional_call(model, {**rest, **own}, tuple(part.unsqueeze(0) for part in x))
        result: Tensor = (output.squeeze(0) * v).sum()
        return result

    each = vmap(grad(product), in_dims=(None, 0, *(0 for _ in inputs)))
    step = max(1, CHUNK // sum(p.numel() for p in values.values()))
    for start in range(0, len(cotangents), step):
        part = slice(start, start + step)
        yield each(values, cotangents[part], *(x[part] for x in inputs))
