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
