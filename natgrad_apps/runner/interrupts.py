"""Ctrl-C and SIGTERM end a run at the next safe point instead of in the middle of an update."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

ECHO_SECONDS = 0.5


class InterruptedRunError(Exception):
    """A run stopped at a safe point, because a signal asked for it.

    Args:
        resume: The command that continues the run.
    """

    def __init__(self, resume: str) -> None:
        super().__init__(f"interrupted; to continue: {resume}")
        self.resume = resume


class InterruptFlag:
    """While active, the first SIGINT or SIGTERM only sets a flag; a second SIGINT interrupts at once.

    Launchers such as ``timeout`` pass on a signal that the terminal has sent already, so an echo within `ECHO_SECONDS` is no second one.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether a signal has arrived."""
        return self.name is not None

    def __enter__(self) -> InterruptFlag:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.is_set and number == signal.SIGINT and now - self._since > ECHO_SECONDS:
            raise KeyboardInterrupt
        if not self.is_set:
            self.name, self._since = signal.Signals(number).name, now
