"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0


class ProgressView:
    """Shows how far a run is, with a few of its numbers.

    Args:
        title: Name of the run.
        total: Number of steps of the whole run.
        done: Steps done before this process, for a resumed run.
        log: Is given every line that is printed.
    """

    unit = "steps"

    def __init__(self, title: str, total: int, done: int, log: Callable[[str], None]) -> None:
        self.title, self.total, self.done = title, total, done
        self._log = log
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + self.unit),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, numbers="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, numbers: Mapping[str, str], *, last: bool = False) -> None:
        """Show the state of the run.

        Args:
            done: Steps done.
            numbers: What to show beside them, as text.
            last: Whether this is the end; a plain line is then written in any case.
        """
        self.done = done
        text = "  ".join(f"{name} {value}" for name, value in numbers.items())
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(done, self.total), numbers=text)
            return
        now = time.monotonic()
        if last or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"{self.title}  {done:,}/{self.total:,} {self.unit}  {text}")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one, and log it."""
        self._log(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
