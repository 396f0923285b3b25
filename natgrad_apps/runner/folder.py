"""The run folder: one experiment, with everything that is needed to read, repeat or continue it."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic
from natgrad_apps.runner.checkpoints import CheckpointStore
from natgrad_apps.runner.metrics import MetricsFile

CONFIG = "config.yaml"
RESULTS = "results.json"
_LOCK, _LOG = ".lock", "log.txt"
_EMPTY_RUN = frozenset({_LOCK, _LOG, CONFIG, "tensorboard"})


def check_new(path: Path) -> None:
    """Check that a run folder could be made, without making it.

    A run that failed before it had anything to keep leaves no more than its log, which a new one goes on with.

    Raises:
        ConfigError: The folder exists and is not empty, is a file, or may not be written.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {str(path)!r} is a file; give a folder that does not exist yet")
    if path.is_dir() and any(path.iterdir()) and not is_empty_run(path):
        hint = f"to continue that run: --resume {path}; " if (path / CONFIG).is_file() else ""
        raise ConfigError(f"--out {str(path)!r} exists and is not empty; {hint}to start anew give another folder")
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ConfigError(f"--out {str(path)!r} cannot be made: {str(parent)!r} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {str(path)!r} cannot be made: no permission to write in {str(parent)!r}")


def is_empty_run(path: Path) -> bool:
    """Whether a folder is that of a run that has kept nothing, neither a checkpoint nor a number."""
    names = {entry.name for entry in path.iterdir() if entry.suffix != ".tmp"}
    return {_LOCK, _LOG} <= names <= _EMPTY_RUN


class RunFolder:
    """An open run folder; only one process at a time holds it open.

    Attributes:
        path: The folder.
        metrics: ``metrics.csv``.
        checkpoints: ``checkpoint/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsFile(path / "metrics.csv")
        self.checkpoints = CheckpointStore(path / "checkpoint")
        self._lock = self._take_lock()
        self._log = (path / _LOG).open("a", encoding="utf-8")

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> RunFolder:
        """Make a new run folder.

        Args:
            path: A folder that does not exist, is empty, or that of a run that has kept nothing.
            config_yaml: The resolved configuration.

        Raises:
            ConfigError: The folder is not empty or cannot be made.
        """
        check_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
        except OSError as error:
            raise ConfigError(f"--out {str(path)!r} cannot be made: {error.strerror}") from error
        atomic.write_text(path / CONFIG, config_yaml)
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to be continued.

        Raises:
            ConfigError: It is no run folder, or another process has it open.
        """
        require_run(path)
        try:
            return cls(path)
        except OSError as error:
            raise ConfigError(f"the run folder {str(path)!r} cannot be opened: {error.strerror}") from error

    @property
    def figures(self) -> Path:
        """``figures/``."""
        return self.path / "figures"

    @property
    def tensorboard(self) -> Path:
        """``tensorboard/``."""
        return self.path / "tensorboard"

    def log(self, text: str) -> None:
        """Append lines to ``log.txt``, each with the time (UTC)."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        self._log.writelines(f"{now} {line}\n" for line in text.splitlines())
        self._log.flush()

    def write_results(self, results: object) -> None:
        """Write ``results.json``."""
        atomic.write_json(self.path / RESULTS, results)

    def close(self) -> None:
        """Let go of the folder."""
        self.metrics.close()
        self._log.close()
        self._lock.close()

    def _take_lock(self) -> TextIO:
        # The lock lives as long as the process, so that a killed run leaves none behind.
        handle = (self.path / _LOCK).open("w", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise ConfigError(f"another process is writing to {str(self.path)!r}; wait for it, or stop it") from error
        return handle


def require_run(path: Path) -> None:
    """Check that a folder is a run folder.

    Raises:
        ConfigError: It is not.
    """
    if not path.exists():
        raise ConfigError(f"there is no run folder {str(path)!r}")
    if not (path / CONFIG).is_file():
        raise ConfigError(f"{str(path)!r} is no run folder: it has no {CONFIG}")


def read_results(path: Path) -> dict[str, object] | None:
    """``results.json`` of a run folder, or None if the run has not finished.

    Raises:
        ConfigError: The file is damaged.
    """
    file = path / RESULTS
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} is no valid JSON: {error}") from error
    return dict(value)
