"""Exit codes, alike for every runner: 0 done, 1 failure, 2 bad input, 130 interrupted."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.interrupts import InterruptedRunError

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class RunFailedError(Exception):
    """A run failed, and its ``log.txt`` holds the traceback.

    Args:
        message: One line for the user.
    """


def run_command(program: str, action: Callable[[], None]) -> int:
    """Run an action and turn what becomes of it into an exit code and a message on standard error.

    Args:
        program: Name of the console script.
        action: The work.

    Returns:
        The exit code.
    """
    try:
        action()
        sys.stdout.flush()
    except ConfigError as error:
        _say(f"{program}: error: {error}")
        return BAD_INPUT
    except InterruptedRunError as stop:
        _say(f"\n{program}: interrupted, the checkpoint is written. To continue:\n  {stop.resume}")
        return INTERRUPTED
    except KeyboardInterrupt:
        _say(f"\n{program}: interrupted")
        return INTERRUPTED
    except RunFailedError as error:
        _say(f"{program}: failed: {error}")
        return FAILURE
    except BrokenPipeError:
        # The reader of our output is gone, as in `... | head`; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        # No run folder is open that could hold the traceback, so it goes to the screen.
        traceback.print_exc()
        _say(f"{program}: failed: {type(error).__name__}: {error}")
        return FAILURE
    return DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
