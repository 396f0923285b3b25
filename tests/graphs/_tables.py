"""A small graph of two communities as tables, for tests of whole runs."""

from __future__ import annotations

import csv
from pathlib import Path

import torch


def write_communities(folder: Path, nodes: int = 60) -> tuple[Path, Path]:
    """Two communities, dense inside, with noisy features that tell them apart; every tenth node is trained on, the next ones validate."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(nodes) % 2
    x = torch.randn(nodes, 5, generator=generator).abs() + y.unsqueeze(1) * torch.tensor([0.5, 0, 0, 0, 0])
    chance = torch.where(y.unsqueeze(0) == y.unsqueeze(1), 0.2, 0.02)
    links = (torch.rand(nodes, nodes, generator=generator) < chance).triu(1).nonzero()
    with (folder / "edges.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["source", "target"], *[[f"n{a}", f"n{b}"] for a, b in links.tolist()]])
    parts = ["train" if i % 10 < 2 else "val" if i % 10 < 5 else "test" for i in range(nodes)]
    rows = [[f"n{i}", "ab"[int(y[i])], parts[i], *(f"{v:.5f}" for v in x[i].tolist())] for i in range(nodes)]
    with (folder / "nodes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "label", "split", *(f"f{i}" for i in range(5))], *rows])
    return folder / "edges.csv", folder / "nodes.csv"
