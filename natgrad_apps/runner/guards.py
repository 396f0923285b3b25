"""Where failures and warnings of a run go: its log, and one line for the user."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.command import RunFailedError
from natgrad_apps.runner.folder import RunFolder, is_empty_run
from natgrad_apps.runner.interrupts import InterruptedRunError
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.words import one_line

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
"""What Gymnasium puts around its warnings, whoever reads them."""


@contextmanager
def failures_to(folder: RunFolder, resume: str, kept: Callable[[], bool] | None = None, *, checked: bool = False) -> Iterator[None]:
    """Write the traceback of a failure to the log, and pass on one line.

    Args:
        folder: Of the run.
        resume: The command that continues the run; told if something is kept.
        kept: Whether something is; None asks for a checkpoint.
        checked: Whether the input has been found to be good, so that what is wrong now is a failure.

    Raises:
        RunFailedError: In place of any error that is no bad input and no interruption.
    """
    try:
        yield
    except (InterruptedRunError, KeyboardInterrupt, RunFailedError):
        raise
    except Exception as error:
        if isinstance(error, ConfigError) and not checked:
            raise
        folder.log(traceback.format_exc())
        can_resume = bool(folder.checkpoints.steps()) if kept is None else kept()
        again = "; nothing is kept: when mended, start again with the same --out" if is_empty_run(folder.path) else ""
        hint = f"; to go on: {resume}" if can_resume else again
        raise RunFailedError(
            f"{type(error).__name__}: {one_line(error, 'no message')}; the traceback is in {folder.path / 'log.txt'}{hint}"
        ) from error


@contextmanager
def warnings_to(view: ProgressView) -> Iterator[None]:
    """Show warnings as lines that leave the progress bar whole, and that the log keeps."""

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        view.say(f"{category.__name__}: {_COLORS.sub('', str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
