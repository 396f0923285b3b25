"""Where failures and warnings of a run go: its log, and one line for the user."""

from __future__ import annotations

import shlex
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.command import RunFailedError
from natgrad_apps.runner.folder import RunFolder
from natgrad_apps.runner.interrupts import InterruptedRunError
from natgrad_apps.runner.progress import ProgressView

PROGRAM = "natgrad-acktr"


@contextmanager
def failures_to(folder: RunFolder) -> Iterator[None]:
    """Write the traceback of a failure to the log, and pass on one line."""
    try:
        yield
    except (InterruptedRunError, KeyboardInterrupt, ConfigError):
        raise
    except Exception as error:
        folder.log(traceback.format_exc())
        what = " ".join(str(error).split()) or "no message"
        if isinstance(error, (EOFError, ConnectionError)):
            what = "the process of an environment died; what it printed says why"
        resume = f"; to go on: {PROGRAM} train --resume {shlex.quote(str(folder.path))}" if folder.checkpoints.steps() else ""
        raise RunFailedError(f"{type(error).__name__}: {what}; the traceback is in {folder.path / 'log.txt'}{resume}") from error


@contextmanager
def warnings_to(view: ProgressView) -> Iterator[None]:
    """Show warnings as lines that leave the progress bar whole, and that the log keeps."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        view.say(f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
