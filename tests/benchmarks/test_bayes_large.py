"""The benchmark of ten million weights: its network, and on a small one that both methods train and are measured alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks._digits import Images
from benchmarks.bayes_large import Settings, initialize, large_network, run, table


def test_the_network_has_ten_million_weights() -> None:
    with torch.device("meta"):
        model = large_network()
    assert sum(p.numel() for p in model.parameters()) == 10_652_042


def test_the_first_weights_are_a_draw_of_the_prior() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(200, 100))
    for name, precision in initialize(model).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        # 4,608 and 20,000 numbers: the standard error of their mean square is sqrt(2 / 4608) = 2 %, five of which are allowed
        assert layer.weight.square().mean().item() * precision == pytest.approx(1.0, rel=0.1)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_both_methods_learn_and_the_table_says_so() -> None:
    torch.manual_seed(0)
    y = torch.arange(10).repeat(12)
    x = 0.05 * torch.randn(120, 1, 4, 4)
    x[torch.arange(120), 0, y // 4, y % 4] += 1.0  # the class is the bright pixel
    records = run(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)),
        Images(x[:100], y[:100], x[100:], y[100:], {}),
        Settings(steps=20, batch=32, radius=0.1),
    )
    adam, noisy = records
    assert adam["before"] == noisy["before"]
    assert adam["weights"] == 16 * 32 + 32 + 320 + 10
    # Noise of 0.05 leaves the classes apart, and chance is 10 %. Twenty of Adam's small steps lower the loss and need not do more.
    assert noisy["after"][0] >= 90
    assert all(r["losses"][-1] < r["losses"][0] for r in records)
    lines = table(records).splitlines()
    assert "loss, steps 1-4 | loss, steps 5-8" in lines[0]
    assert f"{noisy['before'][0]:.1f}, {noisy['before'][1]:.3f} -> {noisy['after'][0]:.1f}" in lines[3]
    assert "5 draws" in lines[3]
    assert "5 draws" not in lines[2]
