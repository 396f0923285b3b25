"""Checkpoints: one folder a step, complete by the rename that gives it its name, and verified by SHA-256 when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic

MANIFEST = "manifest.json"
BEST = "best.json"
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        folder: Where it lies.
        step: The step it was taken at.
        files: Content of its files, by name.
    """

    folder: Path
    step: int
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run.

    Attributes:
        folder: ``checkpoint/`` of the run folder.
        keep: How many of the newest stay; the best one stays too.
    """

    folder: Path
    keep: int = 2

    def save(self, step: int, files: Mapping[str, bytes], *, best: bool = False) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            step: The step it is taken at; a checkpoint of that step that exists already is kept as it is.
            files: Content by file name.
            best: Whether this is the best one so far.

        Returns:
            The checkpoint's folder.
        """
        target = self.folder / f"step_{step:012d}"
        if not target.exists():
            temporary = self.folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
            temporary.mkdir(parents=True)
            try:
                manifest = {"step": step, "files": {name: {"sha256": _digest(data), "bytes": len(data)} for name, data in files.items()}}
                for name, data in files.items():
                    atomic.write_and_sync(temporary / name, data)
                atomic.write_and_sync(temporary / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
                atomic.sync_folder(temporary)
                os.rename(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            atomic.sync_folder(self.folder)
        if best:
            atomic.write_json(self.folder / BEST, {"step": step})
        self._remove_old()
        return target

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _STEP.fullmatch(path.name)))

    def find(self, which: str = "last") -> Path:
        """Folder of the ``"last"`` or the ``"best"`` checkpoint.

        Raises:
            ConfigError: There is none.
        """
        if which == "best":
            step = self._best()
            if step is None:
                raise ConfigError(
                    f"{self.folder} has no best checkpoint: no evaluation took place during training (evaluation.every_steps is 0?)"
                )
            return self.folder / f"step_{step:012d}"
        steps = self.steps()
        if not steps:
            raise ConfigError(f"{self.folder} holds no checkpoint")
        return self.folder / f"step_{steps[-1]:012d}"

    def _best(self) -> int | None:
        path = self.folder / BEST
        return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.is_file() else None

    def _remove_old(self) -> None:
        best = self._best()
        for step in self.steps()[: -self.keep]:
            if step != best:
                shutil.rmtree(self.folder / f"step_{step:012d}", ignore_errors=True)
        for leftover in self.folder.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


class DamagedError(ConfigError):
    """A checkpoint is there, but not all of it."""


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint and verify every file of it.

    Raises:
        ConfigError: It is no checkpoint.
        DamagedError: A file is missing, cut short or altered; the message names an intact checkpoint beside it.
    """
    try:
        return _read(folder)
    except DamagedError as error:
        raise DamagedError(f"{error}; {_remedy(folder)}") from error


def _read(folder: Path) -> Checkpoint:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        step, records = int(manifest["step"]), dict(manifest["files"])
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is no checkpoint: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read ({error})") from error
    files: dict[str, bytes] = {}
    for name, record in records.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise _damaged(folder, f"{name} cannot be read ({error.strerror})") from error
        found = _digest(files[name])
        if found != record["sha256"]:
            what = f"SHA-256 {found[:16]}... and {len(files[name])} bytes, written were {record['sha256'][:16]}... and {record['bytes']}"
            raise _damaged(folder, f"{name} has {what}")
    return Checkpoint(folder, step, files)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _damaged(folder: Path, what: str) -> DamagedError:
    return DamagedError(f"the checkpoint {folder} is damaged: {what}")


def _remedy(folder: Path) -> str:
    """What to do about a damaged checkpoint: continuing from an earlier one gives the same run."""
    others = sorted((path for path in folder.parent.iterdir() if _STEP.fullmatch(path.name) and path != folder), reverse=True)
    intact = next((path for path in others if _is_intact(path)), None)
    if intact is None:
        return "no other checkpoint is intact, so start anew"
    if intact > folder:
        return f"{intact.name} is intact"
    void = [path for path in (folder, *others) if path > intact]
    return f"{intact.name} is intact; to go back to it: rm -r {' '.join(shlex.quote(str(path)) for path in void)}"


def _is_intact(folder: Path) -> bool:
    try:
        _read(folder)
    except ConfigError:
        return False
    return True
