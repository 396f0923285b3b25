"""Training runs: from a configuration to a run folder, and on from a checkpoint."""

from __future__ import annotations

import math
import shlex
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.tensorboard import SummaryWriter

import natgrad_apps
from natgrad_apps.bayes import snapshot
from natgrad_apps.bayes.config import TrainConfig
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.bayes.foreign import describe, detection, foreign_inputs, uncertainty
from natgrad_apps.bayes.plotting import plot_run
from natgrad_apps.bayes.run_data import open_data, resolve_device
from natgrad_apps.bayes.snapshot import Progress
from natgrad_apps.bayes.tasks import RegressionTask
from natgrad_apps.bayes.variational import StepInfo
from natgrad_apps.errors import NumericalError
from natgrad_apps.runner import provenance, schema
from natgrad_apps.runner.folder import RunFolder, check_new
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.resuming import reopen

PROGRAM = "natgrad-bayes"
PACKAGES = ("natgrad-apps", "torch", "numpy", "scikit-learn", "pandas")
BAR_SECONDS = 0.2


def train(config: TrainConfig, out: Path) -> None:
    """Fit a posterior and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration or the data cannot be used; nothing has been written then.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    check_new(out)
    fit = open_fit(config)
    fit.start_from_file()
    foreign_inputs(fit, config.foreign)  # what cannot be used is told before the training
    config_yaml = schema.to_yaml(config)
    with ExitStack() as stack:
        folder = RunFolder.create(out, config_yaml)
        stack.callback(folder.close)
        _Session(config, config_yaml, folder, fit, Progress()).run(resumed=False)


def resume(path: Path) -> None:
    """Continue a run from its last checkpoint to its original end.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder, or its checkpoint is damaged, or its data set has changed.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        run = reopen(path, TrainConfig, PROGRAM, stack)
        if run is None:
            return
        config, folder = run.config, run.folder
        fit = open_fit(config)
        progress = snapshot.restore(run.files, fit)
        progress.sessions += 1
        folder.metrics.cut(fit.steps_done)
        _Session(config, run.config_yaml, folder, fit, progress).run(resumed=True)


def open_fit(config: TrainConfig) -> Fit:
    """A new training; torch's threads are set as the configuration says.

    Raises:
        ConfigError: Data, device or method cannot be used.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    table, split = open_data(config)
    return Fit(table, split, config, config.seed, device)


def check_finite(result: dict[str, float]) -> dict[str, float]:
    """The metrics of a posterior that predicts numbers.

    Args:
        result: Metrics by name.

    Raises:
        NumericalError: One is NaN or infinite.
    """
    bad = [name for name, value in result.items() if not math.isfinite(value)]
    if bad:
        raise NumericalError(f"{', '.join(bad)} not finite: the training diverged; lower inference.lr or raise inference.damping")
    return result


@dataclass
class _Session:
    """One process's part of a run."""

    config: TrainConfig
    config_yaml: str
    folder: RunFolder
    fit: Fit
    progress: Progress

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()
        self._shown = float("-inf")

    def run(self, *, resumed: bool) -> None:
        """Train to the end, evaluate, write results and pictures."""
        fit, config = self.fit, self.config
        self.folder.log(f"{'resume' if resumed else 'start'} at step {fit.steps_done}")
        title = f"{config.method} {fit.schema.name}"
        view = ProgressView(title, fit.steps_total, fit.steps_done, self.folder.log)
        with ExitStack() as stack:
            flag = stack.enter_context(InterruptFlag())
            stack.enter_context(failures_to(self.folder, self._resume_command()))
            stack.enter_context(view)
            stack.enter_context(warnings_to(view))
            events = SummaryWriter(str(self.folder.tensorboard), purge_step=fit.steps_done + 1 if resumed else None)
            stack.callback(events.close)
            rows = f"{fit.schema.rows} training rows, {len(fit.split.test)} test rows, {len(fit.schema.features)} inputs"
            view.say(f"{title}: {rows}, {fit.steps_total:,} steps, seed {config.seed}, {fit.device}")
            if not resumed:
                self._save()
            self._learn(flag, view, events)
            result = check_finite(fit.evaluate())
            own, outside = fit.table.x[fit.split.test], foreign_inputs(fit, config.foreign)
            foreign = detection(uncertainty(fit.predict(own)), uncertainty(fit.predict(outside)))
            self._count_time()
            self.folder.write_results(self._results(result, foreign))
            pictures = plot_run(fit, config.foreign, self.folder.path)
        summary = "test: " + "  ".join(f"{name} {value:.4g}" for name, value in result.items())
        self.folder.log(f"done at step {fit.steps_done}; {summary}")
        print(summary)
        print(f"run folder: {self.folder.path}   pictures: {', '.join(p.name for p in pictures)}")

    def _learn(self, flag: InterruptFlag, view: ProgressView, events: SummaryWriter) -> None:
        fit, config = self.fit, self.config
        while fit.steps_done < fit.steps_total:
            if flag.is_set:
                self._save()
                self._interrupt(flag)
            start = time.perf_counter()
            info = fit.step()
            self.progress.training_seconds += time.perf_counter() - start
            last = fit.steps_done == fit.steps_total
            if last or fit.steps_done % config.log_every == 0:
                self._write_row(info, events)
            if last or fit.steps_done % config.checkpoint_every == 0:
                self._save()
            self._show(info, view, last=last)

    def _write_row(self, info: StepInfo, events: SummaryWriter) -> None:
        fit = self.fit
        self._count_time()
        row: dict[str, float] = {
            "train/nelbo": float(info.nelbo),
            "train/expected_nll": float(info.expected_nll),
            "train/kl": float(info.kl),
            "train/learning_rate": fit.vi.lr,
            "time/seconds": self.progress.seconds,
        }
        if isinstance(fit.vi.task, RegressionTask):
            row["train/noise_std"] = fit.learned()["noise_std"]
        self.folder.metrics.write(fit.steps_done, row)
        for name, value in row.items():
            events.add_scalar(name, value, fit.steps_done)

    def _save(self) -> None:
        self._count_time()
        self.folder.checkpoints.save(self.fit.steps_done, snapshot.pack(self.fit, self.progress, self.config_yaml))

    def _show(self, info: StepInfo, view: ProgressView, *, last: bool) -> None:
        now = time.perf_counter()
        if last or now - self._shown >= BAR_SECONDS:
            self._shown = now
            numbers = {"nelbo": f"{float(info.nelbo):.4g} nats", "KL": f"{float(info.kl):.3g}"}
            view.update(self.fit.steps_done, numbers, last=last)

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _resume_command(self) -> str:
        return f"{PROGRAM} train --resume {shlex.quote(str(self.folder.path))}"

    def _interrupt(self, flag: InterruptFlag) -> NoReturn:
        self.folder.log(f"interrupted by {flag.name} at step {self.fit.steps_done}")
        raise InterruptedRunError(self._resume_command())

    def _results(self, result: dict[str, float], foreign: dict[str, float]) -> dict[str, Any]:
        fit, progress, config = self.fit, self.progress, self.config
        return {
            "runner": PROGRAM,
            "dataset": config.dataset,
            "method": config.method,
            "split": config.split,
            "test": result,
            "foreign": {"inputs": describe(config.foreign), **foreign},
            "learned": fit.learned(),
            "rows": {"train": fit.schema.rows, "test": len(fit.split.test)},
            "steps": fit.steps_done,
            "steps_per_second": fit.steps_done / max(progress.training_seconds, 1e-9),
            "training_seconds": progress.training_seconds,
            "seconds": progress.seconds,
            "seeds": {"run": config.seed, "split": config.split},
            "sessions": progress.sessions,
            "packages": provenance.package_versions(PACKAGES),
            "source": provenance.git_commit(Path(natgrad_apps.__file__)),
            "machine": provenance.machine(fit.device),
        }
