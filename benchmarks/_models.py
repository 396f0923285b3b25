"""The two workloads of `step_cost.py`: networks, minibatches, losses, and the matrix shapes that the flop floor needs."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

AUTOENCODER_WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
CLASSES = 18
NUM_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """Where and how the numbers are computed.

    Attributes:
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, or ``bf16`` for forward and backward passes under `torch.autocast`.
        threads: CPU threads of one operation.
    """

    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def autocast(self) -> torch.autocast:
        """The context in which forward passes run; it changes nothing with float32."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bf16")


@dataclass(frozen=True)
class LayerShape:
    """Matrix sizes of one layer.

    Attributes:
        units: ``N``, examples of the minibatch.
        positions: ``S``, output positions that share the weight.
        d_in: Columns of the weight matrix, the bias included.
        d_out: Rows of the weight matrix.
    """

    units: int
    positions: int
    d_in: int
    d_out: int


@dataclass(frozen=True)
class Workload:
    """One network with its minibatches.

    Attributes:
        name: ``autoencoder`` or ``cnn``.
        build: Makes the network, always with the same initial weights.
        batches: Minibatches ``(x, target)``; contenders go round them.
        loss: Mean-reduced loss module.
        family: Likelihood that belongs to the loss: ``gaussian`` or ``categorical``.
        setting: Device and dtype.
    """

    name: str
    build: Callable[[], nn.Sequential]
    batches: tuple[tuple[Tensor, Tensor], ...]
    loss: nn.Module
    family: str
    setting: Setting = field(default_factory=Setting)

    @property
    def batch_size(self) -> int:
        """Examples in a minibatch."""
        return int(self.batches[0][0].shape[0])

    def model(self) -> nn.Sequential:
        """A fresh network on the device."""
        return self.build().to(self.setting.device)

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The minibatches, without end."""
        return cycle(self.batches)

    @torch.no_grad()
    def mean_loss(self, model: nn.Module) -> float:
        """Loss over all minibatches, of a network whoever trains it."""
        with self.setting.autocast():
            losses = [self.loss(model(x), target) for x, target in self.batches]
        return float(torch.stack(losses).mean())

    def layer_shapes(self) -> list[LayerShape]:
        """Shapes of every weight layer, read off one forward pass."""
        shapes: list[LayerShape] = []

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            positions = output[0].numel() // weight.shape[0]
            shapes.append(LayerShape(inputs[0].shape[0], positions, weight[0].numel() + 1, weight.shape[0]))

        model = self.model()
        handles = [layer.register_forward_hook(record) for layer in weight_layers(model)]
        with torch.no_grad():
            model(self.batches[0][0])
        for handle in handles:
            handle.remove()
        return shapes


def weight_layers(model: nn.Module) -> list[nn.Module]:
    """The linear and convolutional layers of a network, in order."""
    return [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def autoencoder(setting: Setting, batch_size: int = 500, widths: tuple[int, ...] = AUTOENCODER_WIDTHS) -> Workload:
    """The deep autoencoder of Martens and Grosse (2015) with ReLU, mean squared error, on digits if they are at hand."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        modules: list[nn.Module] = []
        for d_in, d_out in pairwise(widths):
            modules += [nn.Linear(d_in, d_out), nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    images = _digits(batch_size * NUM_BATCHES, widths[0]).to(setting.device)
    batches = tuple((x, x) for x in images.split(batch_size))
    return Workload("autoencoder", build, batches, nn.MSELoss(), "gaussian", setting)


def nature_cnn(setting: Setting, batch_size: int = 256, size: int = 84) -> Workload:
    """The convolutional network of Mnih et al. (2015) with 32 channels in the third layer (as in ACKTR), cross-entropy, random frames."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        side = ((size - 8) // 4 + 1 - 4) // 2 + 1 - 2
        return nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, 512),
            nn.ReLU(),
            nn.Linear(512, CLASSES),
        )

    generator = torch.Generator().manual_seed(0)
    batches = tuple(
        (
            torch.rand(batch_size, 4, size, size, generator=generator).to(setting.device),
            torch.randint(CLASSES, (batch_size,), generator=generator).to(setting.device),
        )
        for _ in range(NUM_BATCHES)
    )
    return Workload("cnn", build, batches, nn.CrossEntropyLoss(), "categorical", setting)


def _digits(count: int, pixels: int) -> Tensor:
    """Images in [0, 1], ``[count, pixels]``: ``NATGRAD_DATA/mnist-10k`` if it is there and fits, else random ones."""
    folder = os.environ.get("NATGRAD_DATA")
    path = Path(folder) / "mnist-10k" / "t10k-images-idx3-ubyte.gz" if folder else None
    if path is not None and path.exists() and pixels == 784:
        with gzip.open(path) as file:
            raw = np.frombuffer(file.read(), dtype=np.uint8, offset=16)
        return torch.from_numpy(raw.reshape(-1, pixels)[:count].astype(np.float32) / 255.0)
    generator = torch.Generator().manual_seed(0)
    # A few latent dimensions, so that there is something for an autoencoder to learn, and about a fifth of the pixels lit, as in digits.
    fields = torch.randn(count, 10, generator=generator) @ torch.randn(10, pixels, generator=generator) / 10**0.5
    return fields.sub_(1.0).clamp_(0.0, 1.0)
