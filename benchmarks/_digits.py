"""Small images of digits, with sets that do not belong to them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TRAIN_DIGITS = 1000
TRAIN_MNIST = 8000
FOREIGN = 1000
"""Images of a foreign set, at most."""


@dataclass(frozen=True)
class Images:
    """Images ``[N, 1, size, size]`` in [0, 1], and classes 0-9.

    Attributes:
        train_x: For training.
        train_y: Its classes.
        test_x: For the test.
        test_y: Its classes.
        foreign: Sets that are not from the same source, by name.
        shifted_y: Classes of the set ``USPS``; None where there is none.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    foreign: Mapping[str, Tensor]
    shifted_y: Tensor | None = None

    @property
    def size(self) -> int:
        """Pixels in a row."""
        return self.train_x.shape[-1]


def load_digits(seed: int, validation: bool) -> Images:
    """scikit-learn's 8 x 8 digits.

    Args:
        seed: Of the split.
        validation: Whether a fifth of the training rows tests.
    """
    from sklearn.datasets import load_digits as load  # noqa: PLC0415 - takes a second to load

    found = load()
    x = torch.as_tensor(found.images / 16.0, dtype=torch.float32)[:, None]
    y = torch.as_tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return _images(x[order], y[order], TRAIN_DIGITS, seed, validation)


def load_mnist(seed: int, validation: bool) -> Images:
    """The 10,000 images of ``$NATGRAD_DATA/mnist-10k``, and USPS threes and fives from ``$NATGRAD_DATA/libsvm``.

    Args:
        seed: Of the noise.
        validation: Whether a fifth of the training rows tests.

    Raises:
        SystemExit: The data are not there.
    """
    root = Path(os.environ.get("NATGRAD_DATA", ""))
    folder, usps = root / "mnist-10k", root / "libsvm" / "usps_3vs5.gz"
    if not folder.is_dir() or not usps.is_file():
        raise SystemExit("mnist needs the folders mnist-10k and libsvm in $NATGRAD_DATA")
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    x = torch.as_tensor(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy(), dtype=torch.float32) / 255
    y = torch.as_tensor(np.frombuffer(labels, np.uint8, offset=8).copy(), dtype=torch.int64)
    made = _images(x, y, TRAIN_MNIST, seed, validation)
    shifted, classes = _usps(usps)
    return Images(made.train_x, made.train_y, made.test_x, made.test_y, {**made.foreign, "USPS": shifted}, classes)


def _images(x: Tensor, y: Tensor, train: int, seed: int, validation: bool) -> Images:
    generator = torch.Generator().manual_seed(seed + 1)
    end = train if validation else len(x)
    train = train - train // 5 if validation else train
    test = x[train:end]
    noise = torch.rand(min(len(test), FOREIGN), *x.shape[1:], generator=generator)
    return Images(x[:train], y[:train], test, y[train:end], {"turned": torch.rot90(test, 1, (2, 3))[:FOREIGN], "noise": noise})


def _usps(path: Path) -> tuple[Tensor, Tensor]:
    """16 x 16 images in [-1, 1], +1 for a five; as MNIST has them: 20 x 20 in the middle of 28 x 28, in [0, 1]."""
    from sklearn.datasets import load_svmlight_file  # noqa: PLC0415 - takes a second to load

    table, sign = load_svmlight_file(str(path), n_features=256)
    x = torch.as_tensor(table.toarray(), dtype=torch.float32).reshape(-1, 1, 16, 16).add(1).div(2)[:FOREIGN]
    y = torch.where(torch.as_tensor(sign) > 0, 5, 3)[:FOREIGN]
    return F.pad(F.interpolate(x, size=(20, 20), mode="bilinear", align_corners=False), (4, 4, 4, 4)), y
