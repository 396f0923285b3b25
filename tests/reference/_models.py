"""Small networks for the reference tests: the model, a batch, and its layers by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Case = Callable[[], tuple[nn.Module, Tensor, dict[str, nn.Module]]]


def _named(model: nn.Sequential) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_children() if hasattr(module, "weight")}


def mlp() -> tuple[nn.Module, Tensor, dict[str, nn.Module]]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))
    return model, torch.randn(9, 4), _named(model)


def cnn() -> tuple[nn.Module, Tensor, dict[str, nn.Module]]:
    model = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 3))
    return model, torch.randn(7, 2, 4, 4), _named(model)


def grouped_cnn() -> tuple[nn.Module, Tensor, dict[str, nn.Module]]:
    model = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2, padding="same", dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(30, 3))
    return model, torch.randn(7, 4, 5), _named(model)


CASES: list[Case] = [mlp, cnn, grouped_cnn]
