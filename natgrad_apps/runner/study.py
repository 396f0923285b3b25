"""Studies: runs of many trainings, each of which leaves a file when it is finished and is never done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic, schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.folder import CONFIG, RunFolder, check_new, read_results, require_run
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.progress import ProgressView

Config = TypeVar("Config")
Data = TypeVar("Data")


class StoppedError(Exception):
    """A training of a study was given up, because a signal arrived."""


def start(config: Config, out: Path, prepare: Callable[[Config], Data], run: Callable[[Config, Data, RunFolder], None]) -> None:
    """Begin a study in a new run folder.

    Args:
        config: Its settings.
        out: A folder that does not exist or is empty.
        prepare: Opens what the study needs and checks the settings; nothing has been written yet.
        run: Does the study.

    Raises:
        ConfigError: The settings or the data cannot be used.
        InterruptedRunError: A signal arrived; finished trainings are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    check_new(out)
    data = prepare(config)
    with ExitStack() as stack:
        folder = RunFolder.create(out, schema.to_yaml(config))
        stack.callback(folder.close)
        run(config, data, folder)


def resume(path: Path, kind: type[Config], prepare: Callable[[Config], Data], run: Callable[[Config, Data, RunFolder], None]) -> None:
    """Go on with the trainings of a study that are not finished.

    Args:
        path: The run folder.
        kind: Dataclass of its settings.
        prepare: As for `start`.
        run: As for `start`.

    Raises:
        ConfigError: It is no folder of such a study, or another process writes to it.
        InterruptedRunError: A signal arrived; finished trainings are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    require_run(path)
    if read_results(path) is not None:
        print(f"{path} is complete; nothing is left to do")
        return
    config = schema.read(kind, read_file(path / CONFIG))
    data = prepare(config)
    with ExitStack() as stack:
        folder = RunFolder.reopen(path)
        stack.callback(folder.close)
        run(config, data, folder)


@dataclass(frozen=True)
class Plan:
    """What a study consists of.

    Attributes:
        title: Name of the study.
        unit: What its trainings are called, in the plural; also the folder of their files.
        names: Of all trainings; they name their files, too.
        resume: The command that continues the study.
    """

    title: str
    unit: str
    names: Sequence[str]
    resume: str


class Study:
    """An open study, made by `session`.

    Attributes:
        done: Finished trainings by name.
        view: Shows progress.
        flag: Whether a signal has arrived.
    """

    def __init__(self, plan: Plan, folder: RunFolder, flag: InterruptFlag) -> None:
        self.plan, self.flag = plan, flag
        self._path = folder.path / plan.unit
        self.done: dict[str, Any] = {file.stem: _read(file) for file in sorted(self._path.glob("*.json"))}
        self.view = ProgressView(plan.title, len(plan.names), len(self.done), folder.log)
        self.view.unit = plan.unit

    @property
    def left(self) -> list[str]:
        """Names of the trainings that are not finished, in the order of the plan."""
        return [name for name in self.plan.names if name not in self.done]

    def check(self) -> None:
        """Between two steps of a training.

        Raises:
            StoppedError: A signal arrived.
        """
        if self.flag.is_set:
            raise StoppedError

    def keep(self, name: str, result: Any, text: str | None = None) -> None:
        """Write the result of a finished training, and say a line about it, if one is given."""
        self._path.mkdir(exist_ok=True)
        atomic.write_json(self._path / f"{name}.json", result)
        self.done[name] = result
        if text is not None:
            self.view.say(text)
        self.view.update(len(self.done), {}, last=len(self.done) == len(self.plan.names))


@contextmanager
def session(plan: Plan, folder: RunFolder) -> Iterator[Study]:
    """Work on a study: with progress, and with safe points for signals.

    Args:
        plan: Its trainings.
        folder: Of the study, open.

    Raises:
        ConfigError: The file of a finished training is damaged.
        InterruptedRunError: In place of `StoppedError`.
        RunFailedError: In place of any other error.
    """
    with ExitStack() as stack:
        flag = stack.enter_context(InterruptFlag())
        study = Study(plan, folder, flag)
        stack.enter_context(failures_to(folder, plan.resume, kept=lambda: bool(study.done)))
        stack.enter_context(study.view)
        stack.enter_context(warnings_to(study.view))
        folder.log(f"start; {len(study.done)} of {len(plan.names)} {plan.unit} are finished")
        try:
            yield study
        except StoppedError as error:
            folder.log(f"interrupted by {flag.name} after {len(study.done)} of {len(plan.names)} {plan.unit}")
            raise InterruptedRunError(plan.resume) from error


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} is damaged: {error}; remove it to have that training done again") from error
