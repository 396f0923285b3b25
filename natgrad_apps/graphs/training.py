"""The verb ``train``: from a configuration to a run folder, and on from a checkpoint."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch.utils.tensorboard import SummaryWriter

from natgrad_apps.graphs import parallel, runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.plotting import plot_run
from natgrad_apps.graphs.records import Epoch
from natgrad_apps.graphs.runs import PROGRAM
from natgrad_apps.runner import schema
from natgrad_apps.runner.folder import RunFolder, check_new
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.processes import Processes, join, resume_command
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.resuming import reopen_together


class EpochView(ProgressView):
    """Progress in epochs."""

    unit = "epochs"


def train(config: TrainConfig, out: Path) -> None:
    """Train a network and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration or the data cannot be used; nothing has been written then.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        if not processes.agreed(lambda: check_new(out)):
            return
        trainer = parallel.open_learner(config, processes)
        if not processes.leads:
            parallel.follow(trainer, processes)
            return
        config_yaml = schema.to_yaml(config)
        folder = RunFolder.create(out, config_yaml)
        stack.callback(folder.close)
        _Session(config, config_yaml, folder, trainer, processes).run(resumed=False)


def resume(path: Path) -> None:
    """Continue a run from its last checkpoint to its original end.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder, or its checkpoint is damaged.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        run = reopen_together(path, TrainConfig, parallel.COMMAND, processes, stack)
        if run is None:
            return
        trainer = parallel.open_learner(run.config, processes)
        runs.unpack(run.files, trainer)
        if run.folder is None:
            parallel.follow(trainer, processes)
            return
        run.folder.metrics.cut(trainer.progress.epoch)
        _Session(run.config, run.config_yaml, run.folder, trainer, processes).run(resumed=True)


@dataclass
class _Session:
    """The part of the leading process in a run."""

    config: TrainConfig
    config_yaml: str
    folder: RunFolder
    trainer: Learner
    processes: Processes

    def run(self, *, resumed: bool) -> None:
        """Train to the end, evaluate the chosen epoch, write results and pictures."""
        trainer, config, folder = self.trainer, self.config, self.folder
        start = time.perf_counter()
        folder.log(f"{'resume' if resumed else 'start'} after epoch {trainer.progress.epoch}")
        title = f"{config.model.name} on {trainer.data.name}"
        view = EpochView(title, config.epochs, trainer.progress.epoch, folder.log)
        with ExitStack() as stack:
            flag = stack.enter_context(InterruptFlag())
            stack.enter_context(failures_to(folder, self._resume_command()))
            stack.enter_context(view)
            stack.enter_context(warnings_to(view))
            events = SummaryWriter(str(folder.tensorboard), purge_step=trainer.progress.epoch + 1 if resumed else None)
            stack.callback(events.close)
            view.say(f"{title}, {trainer.split}, {config.optimizer.name}, seed {config.seed}, {trainer.device}")
            self._learn(flag, view, events)
            trainer.load_best()
            results = self._results(time.perf_counter() - start)
            folder.write_results(results)
            pictures = plot_run(folder.path, trainer)
        summary = _summary(results)
        folder.log(f"done after epoch {trainer.progress.epoch}; {summary}")
        print(summary)
        print(f"run folder: {folder.path}   pictures: {', '.join(p.name for p in pictures)}")

    def _learn(self, flag: InterruptFlag, view: EpochView, events: SummaryWriter) -> None:
        trainer = self.trainer
        while True:
            word = parallel.STOP if flag.is_set else parallel.END if trainer.done else parallel.GO
            self.processes.told(word)
            if word == parallel.STOP:
                self._save()
                self._interrupt(flag)
            if word == parallel.END:
                return
            epoch = trainer.advance()
            due = epoch is not None and (epoch.epoch % self.config.checkpoint_every == 0 or trainer.done)
            if epoch is not None:
                self._show(epoch, view, events)
            self.processes.told(due)
            if due:
                self._save()

    def _show(self, epoch: Epoch, view: EpochView, events: SummaryWriter) -> None:
        numbers = epoch.numbers()
        self.folder.metrics.write(epoch.epoch, numbers)
        for name, value in numbers.items():
            events.add_scalar(name.replace("_", "/", 1), value, epoch.epoch)
        view.update(epoch.epoch, _shown(epoch), last=self.trainer.done)

    def _save(self) -> None:
        files = self.processes.gathered_files(runs.pack(self.trainer, self.config_yaml))
        self.folder.checkpoints.save(self.trainer.steps, files)

    def _interrupt(self, flag: InterruptFlag) -> NoReturn:
        self.folder.log(f"interrupted by {flag.name} after epoch {self.trainer.progress.epoch}")
        raise InterruptedRunError(self._resume_command())

    def _resume_command(self) -> str:
        return resume_command(*parallel.COMMAND, self.folder.path, self.processes.size)

    def _results(self, duration: float) -> dict[str, Any]:
        trainer, progress = self.trainer, self.trainer.progress
        return {
            "runner": PROGRAM,
            **describe_result(trainer),
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "epochs_to_target": progress.first_hit,
            "target": self.config.target,
            "seconds": progress.seconds,
            "statistics_seconds": progress.statistics_seconds,
            "duration_seconds": duration,
            "processes": self.processes.size,
            "seeds": {"run": self.config.seed, "split": trainer.split.seed},
            **runs.origin(trainer.device),
        }


def describe_result(trainer: Learner) -> dict[str, Any]:
    """Measures of the weights that the trainer holds now, with dataset and split."""
    train_part, val, test = trainer.evaluate()
    return {
        "dataset": trainer.data.name,
        "split": {"name": trainer.split.name, "text": str(trainer.split), "seed": trainer.split.seed},
        "model": trainer.config.model.name,
        "optimizer": trainer.config.optimizer.name,
        "train": train_part.to_dict(),
        "val": None if val is None else val.to_dict(),
        "test": None if test is None else test.to_dict(),
        **({} if test is None else {f"test_{key}": value for key, value in test.tracked().items() if key in {"accuracy", "auc", "ap"}}),
    }


_SHOWN = (
    ("accuracy", "test accuracy", 100, 2, "%"),
    ("auc", "auc", 100, 2, "%"),
    ("ap", "ap", 100, 2, "%"),
    ("nll", "nll", 1, 3, ""),
    ("ece", "ece", 100, 1, "%"),
)


def _summary(results: dict[str, Any]) -> str:
    test = results["test"]
    numbers = "no test nodes"
    if test is not None:
        numbers = "  ".join(f"{words} {factor * test[key]:.{digits}f}{unit}" for key, words, factor, digits, unit in _SHOWN if key in test)
    return f"{numbers}  (epoch {results['best_epoch']} of {results['epochs']}, {results['dataset']}, {results['split']['text']})"


def _shown(epoch: Epoch) -> dict[str, str]:
    shown = {"loss": f"{epoch.loss:.3f}"}
    if epoch.val is not None:
        shown["val"] = f"{100 * epoch.val.score:.1f}%"
    return shown
