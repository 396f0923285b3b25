"""A small set in the published format of the UCI sets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

ROWS = 20


def write_uci(folder: Path) -> dict[str, str]:
    """A set of the published format with one constant column; returns the checksums of its files."""
    folder.mkdir(parents=True)
    x = np.random.default_rng(0).normal(size=(ROWS, 4))
    x[:, 1] = 7.0
    np.savetxt(folder / "data.txt", x)
    texts = {"index_features": "0\n1\n3\n", "index_target": "2\n", "n_splits": "2\n", "n_hidden": "5\n"}
    for s in range(2):
        order = np.random.default_rng(s).permutation(ROWS)
        texts[f"index_train_{s}"] = "".join(f"{i}\n" for i in order[4:])
        texts[f"index_test_{s}"] = "".join(f"{float(i)}\n" for i in order[:4])
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return {f"{folder.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
