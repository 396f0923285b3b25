"""Run folders as the experiments of a picture: which runs are seeds of one, and what tells one from the others."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from natgrad_apps.agents.config import PROGRAM
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import metrics
from natgrad_apps.runner.figures import Curve
from natgrad_apps.runner.folder import CONFIG, require_run

RECENT, EVALUATION, SPREAD = "rollout/recent_return", "eval/mean_reward", "eval/std_reward"
_SEED = re.compile(r"seed_\d+")
_SHOWN_NAMES = 3


class NothingToDrawError(ConfigError):
    """No episode has ended in a run yet."""


class Run:
    """What a picture needs of one run folder.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder.
        NothingToDrawError: No episode has ended in it yet.
    """

    def __init__(self, path: Path) -> None:
        require_run(path)
        self.path = path
        self.config: dict[str, Any] = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        file = path / "metrics.csv"
        rows = metrics.read_rows(file) if file.is_file() else []
        self.recent = _curve(rows, RECENT)
        self.evaluations = _curve(rows, EVALUATION, SPREAD)
        if not len(self.recent.steps) and not len(self.evaluations.steps):
            raise NothingToDrawError(f"{str(path)!r} has no returns to draw: no episode has ended yet (metrics.csv has {len(rows)} rows)")

    @property
    def environment(self) -> str:
        """Id of the environment."""
        return str(self.config["environment"]["id"])

    @property
    def seed(self) -> int | None:
        """Seed of the run; None if its configuration has none."""
        return self.config.get("seed")

    @property
    def settings(self) -> str:
        """The configuration but for what does not change the method; equal for seeds of one experiment."""
        neutral = {"seed", "device", "threads", "checkpoint_every"}
        return yaml.safe_dump({k: v for k, v in self.config.items() if k not in neutral})


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed only.

    Attributes:
        name: What tells it from the other experiments in its environment.
        runs: One or more, each with a seed of its own.
    """

    name: str
    runs: tuple[Run, ...]


def seed_folders(path: Path) -> list[Path]:
    """The run folders of a group, which ``train --seeds`` made, in the order of the seeds; empty for any other path.

    A run that has not begun is among them, though its folder does not exist.
    """
    if not path.is_dir() or (path / CONFIG).exists():
        return []
    names = {file.stem for file in path.glob("seed_*.yaml")} | {file.parent.name for file in path.glob(f"seed_*/{CONFIG}")}
    return [path / name for name in sorted((n for n in names if _SEED.fullmatch(n)), key=lambda n: int(n.removeprefix("seed_")))]


def gather(paths: Sequence[Path]) -> dict[str, list[Experiment]]:
    """Experiments by environment. What is left out or kept apart is told on standard error.

    Args:
        paths: Run folders, and groups of them.

    Raises:
        ConfigError: A folder is neither.
        NothingToDrawError: No episode has ended in any run yet.
    """
    panels: dict[str, dict[str, list[Run]]] = {}
    for run in _read(_distinct(paths)):
        panels.setdefault(run.environment, {}).setdefault(run.settings, []).append(run)
    found = {}
    for environment, settings in panels.items():
        members = [part for runs in settings.values() for part in _apart(runs)]
        found[environment] = [Experiment(name, tuple(runs)) for name, runs in zip(_names(members), members, strict=True)]
    return found


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Every run folder once, groups replaced by their runs."""
    folders: dict[Path, Path] = {}
    for path in paths:
        seeds = seed_folders(path)
        for folder in seeds or [path]:
            if seeds and not (folder / CONFIG).is_file():
                _tell(f"{str(folder)!r} has not begun and is left out")
            elif folders.setdefault(folder.resolve(), folder) is not folder:
                _tell(f"{str(folder)!r} is given more than once and drawn once")
    return list(folders.values())


def _read(folders: Sequence[Path]) -> list[Run]:
    runs, empty = [], []
    for folder in folders:
        inside = [] if (folder / CONFIG).exists() else sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
        if inside:
            raise ConfigError(f"{str(folder)!r} is no run folder, but holds {len(inside)}: give those, as {folder / inside[0]}")
        try:
            runs.append(Run(folder))
        except NothingToDrawError as error:
            empty.append(str(error))
    if empty and not runs:
        raise NothingToDrawError(empty[0])
    for reason in empty:
        _tell(f"{reason}; it is left out")
    return runs


def _apart(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one configuration, so that no seed is in an experiment twice: by folder, and one by one where that does not do."""
    if not (repeated := _repeated(runs)):
        return [list(runs)]
    again = ", ".join(repr(str(run.path)) for run in repeated)
    _tell(f"{again} have the same configuration and the same seed, {repeated[0].seed}: they are no two seeds and are drawn apart")
    folders: dict[Path, list[Run]] = {}
    for run in runs:
        folders.setdefault(run.path.resolve().parent, []).append(run)
    parts = []
    for members in folders.values():
        parts += [[run] for run in members] if _repeated(members) else [members]
    return parts


def _repeated(runs: Sequence[Run]) -> list[Run]:
    """The runs of the first seed that more than one has."""
    for run in runs:
        same = [other for other in runs if other.seed == run.seed]
        if len(same) > 1:
            return same
    return []


def _names(experiments: Sequence[Sequence[Run]]) -> list[str]:
    """Short names that differ: the ends of their paths, as long as they have to be."""
    paths = [_path(runs) for runs in experiments]
    paths = [_path(r, every=True) if len(r) > 1 and paths.count(p) > 1 else p for r, p in zip(experiments, paths, strict=True)]
    lengths = [2 if _SEED.fullmatch(path[-1]) else 1 for path in paths]
    while True:
        names = ["/".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]
        longer = [i for i, name in enumerate(names) if names.count(name) > 1 and lengths[i] < len(paths[i])]
        if not longer:
            return names
        for i in longer:
            lengths[i] += 1


def _path(runs: Sequence[Run], *, every: bool = False) -> tuple[str, ...]:
    """Where an experiment lies: its run, the folder of its seeds, or what the names of its runs share (with `every`, the names)."""
    folders = [Path(os.path.abspath(run.path)) for run in runs]
    if len(runs) == 1:
        return folders[0].parts
    shared = Path(os.path.commonpath([folder.parent for folder in folders]))
    names = [folder.relative_to(shared).as_posix() for folder in folders]
    if all(_SEED.fullmatch(name) for name in names):
        return shared.parts
    stems = {folder.name.rstrip("0123456789").rstrip("-_. ") for folder in folders}
    if len(stems) == 1 and not every and (stem := stems.pop()) not in {"", "seed"}:
        return (*shared.parts, stem)
    return (*shared.parts, ", ".join(names) if len(names) <= _SHOWN_NAMES else f"{names[0]} ... {names[-1]}")


def _tell(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


def _curve(rows: list[dict[str, str]], name: str, spread: str | None = None) -> Curve:
    points = metrics.column(rows, name)
    bars = metrics.column(rows, spread) if spread is not None else []
    return Curve(
        np.array([s for s, _ in points], dtype=float),
        np.array([v for _, v in points], dtype=float),
        np.array([v for _, v in bars], dtype=float),
    )
