"""The processes of one run, as ``torchrun`` starts them; a run that was started without it is one process."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from natgrad_apps.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. All of them call the same methods in the same order.

    Attributes:
        rank: Number of this one; 0 is the one that owns the run folder and talks to the user.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that owns the run folder."""
        return self.rank == 0

    def told(self, value: T) -> T:
        """The value that the leading process gives; what the others give is ignored."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.leads else None]
        distributed.broadcast_object_list(box, src=0)
        result: T = box[0]
        return result

    def gathered(self, value: T) -> list[T]:
        """What each process gives, in order, on the leading one; nothing on the others."""
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.leads else None
        distributed.gather_object(value, boxes, dst=0)
        return boxes or []

    def agreed(self, check: Callable[[], object]) -> bool:
        """Whether the leading process passed a check; its error is raised there, and the others are told."""
        if not self.leads:
            return self.told(False)
        try:
            check()
        except BaseException:
            self.told(False)
            raise
        return self.told(True)

    def gathered_files(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The files of a checkpoint of the run, on the leading process: its own, and those of the others under names of their own.

        Args:
            files: This process's, by name; of the others, empty ones are left out.
        """
        everybody = self.gathered(dict(files))
        others = {_name(rank, name): data for rank, own in enumerate(everybody) if rank > 0 for name, data in own.items() if data}
        return {**files, **others}

    def own_files(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The part of such a checkpoint that belongs to this process."""
        if self.leads:
            return {name: data for name, data in files.items() if not name.startswith(_PREFIX)}
        prefix = _name(self.rank, "")
        return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


def count_of(files: Mapping[str, bytes]) -> int:
    """How many processes wrote a checkpoint."""
    return 1 + len({name.removeprefix(_PREFIX).partition("_")[0] for name in files if name.startswith(_PREFIX)})


def resume_command(program: str, module: str, path: Path, size: int) -> str:
    """The command that continues a run.

    Args:
        program: Name of the console script.
        module: The module that it runs, which ``torchrun`` needs.
        path: The run folder.
        size: Number of processes.
    """
    start = program if size == 1 else f"torchrun --nproc-per-node {size} -m {module}"
    return f"{start} train --resume {shlex.quote(str(path))}"


_PREFIX = "rank_"


def _name(rank: int, name: str) -> str:
    return f"{_PREFIX}{rank}_{name}"


ALONE = Processes()
"""A run of one process."""


@contextmanager
def join() -> Iterator[Processes]:
    """Join the other processes of the run, over gloo, until the context ends.

    Raises:
        ConfigError: The environment variables of ``torchrun`` are not complete.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start several processes with torchrun")
    distributed.init_process_group("gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
