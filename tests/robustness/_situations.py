"""Networks and ways of training that break optimizers with hooks. Every one says whether it is exact or uses the diagonal fallback.

``exact``: no parameter is without a layer; every block is checked against the dense Fisher. ``fallback``: the parameters named use the
diagonal fallback, which is checked in expectation, and every other block is still checked against the dense Fisher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from natgrad_apps import Preconditioner
from natgrad_apps.likelihoods import Categorical

Run = Callable[[], Tensor]
"""A forward pass to logits ``[N, C]``."""


@dataclass
class Setup:
    """A model and how it is run.

    Attributes:
        model: What the optimizer is given.
        run: The forward pass.
        plain: An equivalent computation for the oracle; None for `run` itself.
        observe: How the batch is observed; None for one forward pass and one observation.
        fallback: Names of the parameters that use the fallback.
        coupled: Whether examples influence each other, so that only the fallback is exact (in expectation).
        unused: Names of parameters that the forward pass does not use.
    """

    model: nn.Module
    run: Run
    observe: Callable[[Preconditioner], None] | None = None
    plain: Run | None = None
    fallback: tuple[str, ...] = ()
    coupled: bool = False
    unused: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["exact", "fallback"]:
        """What the situation is declared to be."""
        return "fallback" if self.fallback else "exact"

    def feed(self, preconditioner: Preconditioner) -> None:
        """Observe one batch; the caller updates."""
        if self.observe is not None:
            self.observe(preconditioner)
            return
        with preconditioner.capture():
            preconditioner.observe(Categorical(self.run()))


class Lambda(nn.Module):
    """A module from modules and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def chain(*modules: nn.Module, x: Tensor) -> Setup:
    model = nn.Sequential(*modules)
    return Setup(model, lambda: model(x))


def inplace_activations() -> Setup:
    return chain(
        nn.Conv2d(1, 3, 2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Linear(4, 3),
        x=torch.randn(6, 1, 3, 3),
    )


def inplace_residual() -> Setup:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        h = m.get_submodule("a")(x)
        h += x
        y: Tensor = m.get_submodule("b")(h.tanh_())
        return y

    model = Lambda(function, a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x))


def grouped_convolution() -> Setup:
    return chain(nn.Conv2d(4, 6, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), x=torch.randn(6, 4, 3, 3))


def depthwise_convolution() -> Setup:
    return chain(nn.Conv2d(3, 3, 2, groups=3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3), x=torch.randn(6, 3, 3, 3))


def dilated_convolution() -> Setup:
    return chain(nn.Conv2d(2, 2, 2, dilation=2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), x=torch.randn(6, 2, 5, 5))


def same_padding() -> Setup:
    return chain(nn.Conv2d(1, 2, 3, padding="same", dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), x=torch.randn(6, 1, 4, 3))


def same_padding_with_an_even_kernel() -> Setup:
    """The padding is one larger at the end than at the start."""
    return chain(nn.Conv2d(1, 2, (2, 4), padding="same"), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3), x=torch.randn(6, 1, 4, 3))


def conv1d() -> Setup:
    return chain(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3), x=torch.randn(6, 2, 5))


def conv3d() -> Setup:
    return chain(nn.Conv3d(1, 2, 2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), x=torch.randn(6, 1, 2, 3, 3))


def module_called_twice() -> Setup:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        a = m.get_submodule("a")
        y: Tensor = m.get_submodule("b")(a(a(x).tanh()).tanh())
        return y

    model = Lambda(function, a=nn.Linear(4, 4), b=nn.Linear(4, 3))
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x))


def convolution_called_on_two_sizes() -> Setup:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        conv = m.get_submodule("conv")
        large, small = conv(x).tanh().flatten(2).mean(2), conv(x[:, :, :2, :2]).flatten(2).mean(2)
        y: Tensor = m.get_submodule("b")(torch.cat([large, small], 1))
        return y

    model = Lambda(function, conv=nn.Conv2d(1, 2, 2), b=nn.Linear(4, 3))
    x = torch.randn(6, 1, 3, 3)
    return Setup(model, lambda: model(x))


def tied_weights() -> Setup:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight, second.bias = first.weight, first.bias
    return chain(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 3), x=torch.randn(6, 4))


def tied_weights_with_own_biases() -> Setup:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return chain(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 3), x=torch.randn(6, 4))


def sequence_inputs() -> Setup:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(5, 3, 4)
    return Setup(model, lambda: model(x).mean(1))


def frozen_bias() -> Setup:
    setup = chain(nn.Linear(4, 5), nn.Tanh(), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3), x=torch.randn(6, 1, 4))
    for name in ("0", "2"):
        bias = setup.model.get_submodule(name).bias
        assert isinstance(bias, Tensor)
        bias.requires_grad_(False)
    return setup


def frozen_weight() -> Setup:
    setup = chain(nn.Linear(4, 5), nn.Tanh(), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3), x=torch.randn(6, 1, 4))
    for name in ("0", "2"):
        weight = setup.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.requires_grad_(False)
    return setup


def unused_module() -> Setup:
    model = Lambda(lambda m, x: m.get_submodule("a")(x), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x), unused=("b.weight", "b.bias"))


def accumulation() -> Setup:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(7, 4)

    def observe(preconditioner: Preconditioner) -> None:
        for part in (x[:3], x[3:]):
            with preconditioner.capture():
                preconditioner.observe(Categorical(model(part)))

    return Setup(model, lambda: model(x), observe)


def compiled() -> Setup:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fast = torch.compile(model, backend="aot_eager")
    assert isinstance(fast, nn.Module)
    x = torch.randn(6, 4)
    fast(x).sum().backward()  # compiled before the optimizer exists, as users do
    for p in model.parameters():
        p.grad = None
    # the compiled backward pass runs once only, so the oracle's many backward passes take the plain model
    return Setup(fast, lambda: fast(x), plain=lambda: model(x))


def compiled_parts() -> Setup:
    """The optimizer is given the plain model, a part of which was compiled in place."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].compile(backend="aot_eager")
    x = torch.randn(6, 4)
    model(x)
    return Setup(model, lambda: model(x))


def activation_checkpointing() -> Setup:
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh())
    model = Lambda(
        lambda m, x: m.get_submodule("head")(checkpoint(m.get_submodule("body"), x, use_reentrant=False)), body=body, head=nn.Linear(5, 3)
    )
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x))


def evaluation_forward() -> Setup:
    """Evaluation passes with and without gradients inside the capture and after it leave no trace."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, other = torch.randn(6, 4), 10 * torch.randn(9, 4)

    def observe(preconditioner: Preconditioner) -> None:
        with preconditioner.capture():
            with torch.no_grad():
                model(other)
            logits = model(x)
            model(other)  # with gradients, but nothing depends on it
            with torch.inference_mode():
                model(other)
            preconditioner.observe(Categorical(logits))
        model.eval()
        model(other)
        model.train()

    return Setup(model, lambda: model(x), observe)


def channels_last() -> Setup:
    x = torch.randn(6, 2, 4, 4).to(memory_format=torch.channels_last)
    setup = chain(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3), x=x)
    weight = setup.model.get_submodule("0").weight
    assert isinstance(weight, nn.Parameter)
    weight.data = weight.data.to(memory_format=torch.channels_last)
    return setup


def lstm() -> Setup:
    model = Lambda(
        lambda m, x: m.get_submodule("head")(m.get_submodule("lstm")(x)[0][:, -1]),
        lstm=nn.LSTM(2, 3, batch_first=True),
        head=nn.Linear(3, 3),
    )
    x = torch.randn(5, 4, 2)
    return Setup(model, lambda: model(x))


EXACT = (
    inplace_activations,
    inplace_residual,
    grouped_convolution,
    depthwise_convolution,
    dilated_convolution,
    same_padding,
    same_padding_with_an_even_kernel,
    conv1d,
    conv3d,
    module_called_twice,
    convolution_called_on_two_sizes,
    tied_weights,
    tied_weights_with_own_biases,
    sequence_inputs,
    frozen_bias,
    frozen_weight,
    unused_module,
    accumulation,
    compiled,
    compiled_parts,
    activation_checkpointing,
    evaluation_forward,
    channels_last,
    lstm,
)


def multihead_attention() -> Setup:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        h = m.get_submodule("embed")(x)
        y: Tensor = m.get_submodule("head")((h + m.get_submodule("attention")(h, h, h)[0]).mean(1))
        return y

    model = Lambda(function, embed=nn.Linear(3, 4), attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2))
    x = torch.randn(4, 3, 3)
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    return Setup(model, lambda: model(x), fallback=tuple(f"attention.{name}" for name in names))


def transformer_layer() -> Setup:
    """The encoder layer calls no child under its fast path, and two of its four linear layers belong to the attention."""
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True)
    model = Lambda(lambda m, x: m.get_submodule("head")(m.get_submodule("layer")(x).mean(1)), layer=layer, head=nn.Linear(4, 2))
    x = torch.randn(4, 3, 4)
    names = ("self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias")
    norms = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    return Setup(model, lambda: model(x), fallback=tuple(f"layer.{name}" for name in (*names, *norms)))


def embedding() -> Setup:
    model = Lambda(
        lambda m, x: m.get_submodule("head")(m.get_submodule("words")(x).mean(1)), words=nn.Embedding(5, 3), head=nn.Linear(3, 3)
    )
    tokens = torch.randint(5, (6, 4))
    return Setup(model, lambda: model(tokens), fallback=("words.weight",))


def embedding_tied_to_the_output() -> Setup:
    model = Lambda(
        lambda m, x: m.get_submodule("output")(m.get_submodule("hidden")(m.get_submodule("words")(x).mean(1)).tanh()),
        words=nn.Embedding(4, 3),
        hidden=nn.Linear(3, 3),
        output=nn.Linear(3, 4),
    )
    model.get_submodule("output").weight = model.get_submodule("words").weight
    tokens = torch.randint(4, (6, 2))
    return Setup(model, lambda: model(tokens), fallback=("words.weight",))


def layer_norm() -> Setup:
    setup = chain(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3), x=torch.randn(6, 4))
    setup.fallback = ("1.weight", "1.bias")
    return setup


def group_norm() -> Setup:
    setup = chain(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3), x=torch.randn(6, 1, 3, 3))
    setup.fallback = ("1.weight", "1.bias")
    return setup


def batch_norm() -> Setup:
    setup = chain(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3), x=torch.randn(8, 4))
    setup.fallback, setup.coupled = ("1.weight", "1.bias"), True
    return setup


def bare_parameter() -> Setup:
    model = Lambda(lambda m, x: m.get_submodule("head")(x * m.get_parameter("gain")), head=nn.Linear(4, 3))
    model.register_parameter("gain", nn.Parameter(torch.randn(4)))
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x), fallback=("gain",))


def functional_use() -> Setup:
    """The module is never called: other code reads its weight."""

    def function(m: nn.Module, x: Tensor) -> Tensor:
        layer = m.get_submodule("layer")
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        y: Tensor = m.get_submodule("head")(F.linear(x, layer.weight, layer.bias).tanh())
        return y

    model = Lambda(function, layer=nn.Linear(4, 4), head=nn.Linear(4, 3))
    x = torch.randn(6, 4)
    return Setup(model, lambda: model(x), fallback=("layer.weight", "layer.bias"))


def overridden_forward() -> Setup:
    """A subclass of a known layer that computes something else must not be treated as that layer."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 3.0

    setup = chain(Scaled(4, 4), nn.Tanh(), nn.Linear(4, 3), x=torch.randn(6, 4))
    setup.fallback = ("0.weight", "0.bias")
    return setup


def transposed_convolution() -> Setup:
    setup = chain(nn.ConvTranspose1d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), x=torch.randn(6, 2, 3))
    setup.fallback = ("0.weight", "0.bias")
    return setup


FALLBACK = (
    multihead_attention,
    transformer_layer,
    embedding,
    embedding_tied_to_the_output,
    layer_norm,
    group_norm,
    batch_norm,
    bare_parameter,
    functional_use,
    overridden_forward,
    transposed_convolution,
)
