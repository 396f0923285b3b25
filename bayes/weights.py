"""The trainable parameters of a model: they hold the posterior mean, except inside `Weights.hold`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from natgrad_apps.errors import ConfigError


class Weights:
    """The trainable parameters of a model by name.

    Args:
        model: Its parameters are changed in place by `hold` and put back, bit by bit, on leaving.

    Raises:
        ConfigError: It is no module or has no trainable parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.live:
            raise ConfigError(f"{type(model).__name__} has no trainable parameter; set requires_grad=True on what should be Bayesian")
        self.names = {p: name for name, p in self.live.items()}
        self._mean: dict[str, Tensor] | None = None

    @property
    def held(self) -> bool:
        """Whether the model holds a sample now."""
        return self._mean is not None

    @property
    def mean(self) -> dict[str, Tensor]:
        """The posterior mean, also while the model holds a sample. Outside `hold` these are the parameters' own tensors."""
        return self._mean if self._mean is not None else {name: p.detach() for name, p in self.live.items()}

    @contextlib.contextmanager
    def hold(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Put values into the model; on leaving, whatever happens inside, put back what it held, bit by bit. May be nested.

        On the CPU, parameters exchange their memory with the values, which is no copy. Autograd sees the exchange: a backward pass through
        a forward pass that was made inside, but started after leaving, raises torch's error on tensors modified in place rather than give
        gradients at the wrong weights.

        Args:
            values: By name of the parameter, in its shape and dtype; what is done to the parameters inside is done to them.
        """
        before = {name: p.data if p.device.type == "cpu" else p.detach().clone() for name, p in self.live.items()}
        outermost = self._mean is None
        if outermost:
            self._mean = before
        try:
            self._put(values)
            yield
        finally:
            self._put(before)
            if outermost:
                self._mean = None

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.live.items():
            if p.device.type == "cpu":
                p.data = values[name]
                torch.autograd.graph.increment_version(p)
            else:  # addresses stay, for recorded graphs of kernels and the packed weights of recurrent layers; a copy costs little
                p.copy_(values[name])
        torch.clear_autocast_cache()  # it keeps low-precision copies of parameters, by identity, until the outermost region ends


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put every buffer (running statistics) of a model back on leaving, whatever happens inside.

    Args:
        model: Its buffers are copied.
    """
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module of a model into evaluation mode; on leaving, whatever happens inside, into the mode that it had.

    Args:
        model: Its `training` attributes are changed.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
