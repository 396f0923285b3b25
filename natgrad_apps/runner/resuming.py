"""The beginning of every resumption: the folder, its settings and its last checkpoint, checked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.folder import CONFIG, RunFolder, read_results, require_run
from natgrad_apps.runner.processes import Processes, count_of, resume_command

Config = TypeVar("Config")


@dataclass(frozen=True)
class Resumed(Generic[Config]):
    """A run that goes on.

    Attributes:
        folder: Open, and closed with the stack.
        config: Its settings.
        config_yaml: The same as text.
        files: Content of its last checkpoint, by file name.
    """

    folder: RunFolder
    config: Config
    config_yaml: str
    files: Mapping[str, bytes]


def reopen(path: Path, kind: type[Config], program: str, stack: ExitStack) -> Resumed[Config] | None:
    """Open a run that is to be continued; None, with a line for the user, if it is complete.

    Args:
        path: The run folder.
        kind: Dataclass of its settings.
        program: Name of the console script.
        stack: Closes the folder.

    Raises:
        ConfigError: It is no run folder, another process writes to it, its settings were changed, or its checkpoint is damaged.
    """
    require_run(path)
    if read_results(path) is not None:
        print(f"{path} is complete; nothing is left to do. To look at it: {program} evaluate {shlex.quote(str(path))}")
        return None
    config = schema.read(kind, read_file(path / CONFIG))
    folder = RunFolder.reopen(path)
    stack.callback(folder.close)
    saved = checkpoints.load(folder.checkpoints.find())
    config_yaml = (path / CONFIG).read_text(encoding="utf-8")
    if saved.files.get(CONFIG) != config_yaml.encode():
        raise ConfigError(
            f"{path / CONFIG} differs from {saved.folder / CONFIG}: a run keeps its settings; undo the change, or start a new run"
        )
    return Resumed(folder, config, config_yaml, saved.files)


@dataclass(frozen=True)
class Shared(Generic[Config]):
    """A run that several processes continue, as each of them sees it.

    Attributes:
        config: Its settings.
        config_yaml: The same as text.
        files: Content of its last checkpoint, by file name: the part of this process.
        folder: Open on the leading process, None on the others.
    """

    config: Config
    config_yaml: str
    files: Mapping[str, bytes]
    folder: RunFolder | None


def reopen_together(
    path: Path, kind: type[Config], command: tuple[str, str], processes: Processes, stack: ExitStack
) -> Shared[Config] | None:
    """`reopen` on every process; None if the run is complete, and on the others if the leading process could not.

    Args:
        path: The run folder.
        kind: Dataclass of its settings.
        command: Name of the console script and the module that it runs.
        processes: Those that are to continue the run.
        stack: Closes the folder.

    Raises:
        ConfigError: The run cannot be continued, or not by this number of processes; raised on the leading process.
    """
    run: Resumed[Config] | None = None

    def check() -> None:
        nonlocal run
        run = reopen(path, kind, command[0], stack)
        count = processes.size if run is None else count_of(run.files)
        if count != processes.size:
            told = f"the run {str(path)!r} has {count} processes, not {processes.size}"
            raise ConfigError(f"{told}; to continue: {resume_command(*command, path, count)}")

    if not processes.agreed(check):
        return None
    found = processes.told(None if run is None else (run.config, run.config_yaml, run.files))
    if found is None:
        return None
    config, config_yaml, files = found
    return Shared(config, config_yaml, processes.own_files(files), None if run is None else run.folder)
