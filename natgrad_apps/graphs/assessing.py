"""The verb ``uncertainty``: a posterior over the weights, its honest probabilities, and a run folder with what it knows about each node."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from natgrad_apps.bayes.metrics import auroc
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.assessment import Assessment
from natgrad_apps.graphs.calibration import Calibrated
from natgrad_apps.graphs.measures import measure
from natgrad_apps.graphs.node_table import Columns, node_table
from natgrad_apps.graphs.plotting import plot_embedding, plot_reliability, plot_uncertainty
from natgrad_apps.graphs.posterior_config import UncertaintyConfig
from natgrad_apps.graphs.splits import without_class
from natgrad_apps.graphs.training import EpochView
from natgrad_apps.runner import atomic, schema
from natgrad_apps.runner.folder import RunFolder, check_new
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.resuming import reopen

NODES = "nodes.csv"


def assess(config: UncertaintyConfig, out: Path) -> None:
    """Fit, and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration or the data cannot be used; nothing has been written then.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    check_new(out)
    assessment = open_assessment(config)
    config_yaml = schema.to_yaml(config)
    with ExitStack() as stack:
        folder = RunFolder.create(out, config_yaml)
        stack.callback(folder.close)
        _Session(config_yaml, folder, assessment).run()


def resume(path: Path) -> None:
    """Continue a run from its last checkpoint to its original end.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder of this verb, or its checkpoint is damaged.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        run = reopen(path, UncertaintyConfig, runs.PROGRAM, stack)
        if run is None:
            return
        assessment = open_assessment(run.config)
        load(run.files, assessment)
        run.folder.metrics.cut(assessment.epochs)
        _Session(run.config_yaml, run.folder, assessment).run()


def open_assessment(config: UncertaintyConfig) -> Assessment:
    """All fits of a run, none of them begun; data, split and network have been tried.

    Raises:
        ConfigError: One of them cannot be used.
    """
    data = runs.open_data(config.graph())
    device = runs.open_trainer(config.graph(), data).device
    return Assessment(config, *runs.split_data(config.graph(), data), device)


@dataclass
class _Session:
    """One process's part of a run."""

    config_yaml: str
    folder: RunFolder
    assessment: Assessment

    def run(self) -> None:
        """Every fit to its end, then numbers, table and pictures."""
        assessment, folder = self.assessment, self.folder
        start = time.perf_counter()
        title = f"posterior of {assessment.config.model.name} on {assessment.data.name}"
        folder.log(f"start after epoch {assessment.epochs}")
        view = EpochView(title, assessment.total, assessment.epochs, folder.log)
        with ExitStack() as stack:
            flag = stack.enter_context(InterruptFlag())
            stack.enter_context(failures_to(folder, self._resume_command()))
            stack.enter_context(view)
            stack.enter_context(warnings_to(view))
            view.say(f"{title}, {assessment.split}, {assessment.fits} fits, seed {assessment.config.seed}, {assessment.device}")
            self._learn(flag, view)
            report = Report.of(assessment)
            results = {**report.numbers(), "duration_seconds": time.perf_counter() - start, **runs.origin(assessment.device)}
            atomic.write_text(folder.path / NODES, report.table())
            pictures = report.pictures(folder.figures)
            folder.write_results(results)
        folder.log(f"done after epoch {assessment.epochs}")
        print(describe(results))
        print(f"run folder: {folder.path}   nodes: {NODES}   pictures: {', '.join(p.name for p in pictures)}")

    def _learn(self, flag: InterruptFlag, view: EpochView) -> None:
        assessment = self.assessment
        while not assessment.done:
            if flag.is_set:
                self._save()
                self._interrupt(flag)
            fit = len(assessment.fitted)
            objective = assessment.run_epoch()
            self.folder.metrics.write(assessment.epochs, {"fit": fit, "objective": objective})
            shown = {"fit": f"{fit + 1} of {assessment.fits}", "objective": f"{objective:.1f} nats"}
            view.update(assessment.epochs, shown, last=assessment.done)
            if assessment.epochs % assessment.config.checkpoint_every == 0 or assessment.done:
                self._save()

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.assessment.state_dict(), buffer)
        self.folder.checkpoints.save(self.assessment.epochs, {runs.STATE: buffer.getvalue(), runs.CONFIG: self.config_yaml.encode()})

    def _interrupt(self, flag: InterruptFlag) -> NoReturn:
        self.folder.log(f"interrupted by {flag.name} after epoch {self.assessment.epochs}")
        raise InterruptedRunError(self._resume_command())

    def _resume_command(self) -> str:
        return f"{runs.PROGRAM} uncertainty --resume {shlex.quote(str(self.folder.path))}"


@dataclass(frozen=True)
class Report:
    """What a finished run found.

    Attributes:
        assessment: The fits.
        chosen: Index of the point of the grid that is reported.
        scores: Negative log-likelihood by which it was chosen, in nats, for every point.
        calibrated: Its probabilities and sets; None without validation nodes.
    """

    assessment: Assessment
    chosen: int
    scores: list[float]
    calibrated: Calibrated | None

    @classmethod
    def of(cls, assessment: Assessment) -> Report:
        """Choose, and calibrate what was chosen."""
        chosen, scores = assessment.choose()
        return cls(assessment, chosen, scores, assessment.calibrated(assessment.fitted[chosen].log_p))

    @property
    def log_p(self) -> Tensor:
        """Log-probabilities that are reported, ``[N, C]``."""
        return self.assessment.fitted[self.chosen].log_p if self.calibrated is None else self.calibrated.log_p

    def numbers(self) -> dict[str, Any]:
        """For ``results.json``."""
        run, split, y = self.assessment, self.assessment.split, self.assessment.data.y
        fitted = run.fitted[self.chosen]

        def of(log_p: Tensor, nodes: Tensor) -> dict[str, float | int] | None:
            return measure(log_p[nodes], y[nodes]).to_dict() if len(nodes) else None

        test = of(self.log_p, split.test)
        temperature, precision = run.grid[self.chosen]
        grid = [{"temperature": t, "prior_precision": p, "selection_nll": s} for (t, p), s in zip(run.grid, self.scores, strict=True)]
        return {
            "runner": runs.PROGRAM,
            "dataset": run.data.name,
            "split": {"name": split.name, "text": str(split), "seed": split.seed},
            "model": run.config.model.name,
            "method": "noisy_kfac",
            "posterior": {"temperature": temperature, "prior_precision": precision, "grid": grid},
            "train": of(self.log_p, split.train),
            "val": of(self.log_p, split.val),
            "test": test,
            "test_accuracy": None if test is None else test["accuracy"],
            "unscaled_test": of(fitted.log_p, split.test),
            "mean_weights_test": of(fitted.mean_log_p, split.test),
            "scaling_temperature": None if self.calibrated is None else self.calibrated.temperature,
            "uncertainty_test": self._parts(split.test),
            "conformal": self._conformal(),
            "left_out": self._left_out(),
            "seeds": {"run": run.config.seed, "split": split.seed},
        }

    def table(self) -> str:
        """``nodes.csv``: one row a node."""
        run, fitted = self.assessment, self.assessment.fitted[self.chosen]
        extra: Columns = {
            name: [f"{value:.6g}" for value in getattr(fitted, name).tolist()] for name in ("entropy", "aleatoric", "epistemic")
        }
        if self.calibrated is not None:
            names = run.data.class_names or tuple(str(c) for c in range(run.data.classes))
            rows = self.calibrated.sets.tolist()
            extra["conformal_set"] = ["|".join(n for n, inside in zip(names, row, strict=True) if inside) for row in rows]
        return node_table(run.data, run.split, self.log_p.exp(), extra)

    def pictures(self, folder: Path) -> list[Path]:
        """Reliability, and the nodes by class and by uncertainty."""
        run, fitted = self.assessment, self.assessment.fitted[self.chosen]
        kinds = {"aleatoric": fitted.aleatoric, "epistemic": fitted.epistemic}
        made = [
            plot_embedding(run.data, run.split, fitted.log_p, folder / "embedding.png"),
            plot_uncertainty(run.data, run.split, fitted.log_p, kinds, folder / "uncertainty.png"),
        ]
        if len(run.split.test):
            curves = {"mixture over weights": fitted.log_p}
            if self.calibrated is not None:
                curves[f"scaled, T = {self.calibrated.temperature:.2f}"] = self.calibrated.log_p
            made.insert(0, plot_reliability(run.data, run.split, curves, folder / "reliability.png"))
        return made

    def _parts(self, nodes: Tensor) -> dict[str, float] | None:
        """Mean parts of the uncertainty before scaling, in nats."""
        fitted = self.assessment.fitted[self.chosen]
        if not len(nodes):
            return None
        return {name: float(getattr(fitted, name)[nodes].mean()) for name in ("entropy", "aleatoric", "epistemic")}

    def _conformal(self) -> dict[str, float] | None:
        test = self.assessment.split.test
        if self.calibrated is None or not len(test):
            return None
        sets = self.calibrated.sets[test]
        covered = sets.gather(1, self.assessment.data.y[test].unsqueeze(1)).double().mean()
        return {
            "promised": 1 - self.assessment.config.miscoverage,
            "coverage": float(covered),
            "classes_a_set": float(sets.double().sum(1).mean()),
        }

    def _left_out(self) -> dict[str, float] | None:
        """How well uncertainty of a fit that was not shown a class tells its test nodes from the others."""
        run, left_out = self.assessment, self.assessment.config.left_out
        if left_out is None:
            return None
        _, _, outside = without_class(run.data, run.split, left_out)
        found, test = run.fitted[-1], run.split.test
        scores = {"auroc_entropy": found.entropy[test], "auroc_epistemic": found.epistemic[test]}
        return {"class": left_out, **{name: auroc(score[~outside], score[outside]) for name, score in scores.items()}}


def describe(results: Mapping[str, Any]) -> str:
    """The numbers as text, with the split."""
    rows = [
        ("mean weights", results["mean_weights_test"]),
        ("mixture over weights", results["unscaled_test"]),
        ("mixture, scaled", None if results["scaling_temperature"] is None else results["test"]),
    ]
    lines = [f"{results['dataset']}, {results['split']['text']}", f"{'test nodes':<22}{'accuracy %':>12}{'NLL':>8}{'Brier':>8}{'ECE %':>8}"]
    for name, found in rows:
        if found is not None:
            lines.append(f"{name:<22}{100 * found['accuracy']:>12.2f}{found['nll']:>8.3f}{found['brier']:>8.3f}{100 * found['ece']:>8.2f}")
    point, parts = results["posterior"], results["uncertainty_test"]
    lines.append(f"posterior: temperature {point['temperature']:g}, prior precision {point['prior_precision']:g}")
    if parts is not None:
        lines.append(f"uncertainty of a test node: {parts['aleatoric']:.3f} nats aleatoric, {parts['epistemic']:.3f} nats epistemic")
    if results["scaling_temperature"] is None:
        lines.append("no validation nodes: probabilities are not scaled, and there are no conformal sets")
    else:
        lines.append(f"scaled by the temperature {results['scaling_temperature']:.3f}, fitted on the validation nodes")
    sets, left_out = results["conformal"], results["left_out"]
    if sets is not None:
        promise = f"{100 * sets['promised']:g} % promised"
        lines.append(f"conformal sets: {100 * sets['coverage']:.1f} % covered ({promise}), {sets['classes_a_set']:.2f} classes a set")
    if left_out is not None:
        aurocs = f"AUROC {left_out['auroc_entropy']:.3f} by entropy, {left_out['auroc_epistemic']:.3f} by epistemic part"
        lines.append(f"class {left_out['class']} left out: {aurocs}")
    return "\n".join(lines)


def load(files: Mapping[str, bytes], assessment: Assessment) -> None:
    """Bring the fits to the state of a checkpoint.

    Raises:
        ConfigError: It has no such state, or that of other fits.
    """
    if runs.STATE not in files:
        raise ConfigError(f"the checkpoint has no {runs.STATE}")
    try:
        assessment.load_state_dict(torch.load(io.BytesIO(files[runs.STATE]), map_location="cpu", weights_only=True))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the checkpoint does not fit this model or this graph: {' '.join(str(error).split())}") from error
