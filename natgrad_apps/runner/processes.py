"""The processes of one run, as ``torchrun`` starts them; a run that was started without it is one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
