"""The verb ``compare``: paired seeds of the natural gradient and of Adam, both tuned by grids of one size in the same run."""

from __future__ import annotations

import itertools
import math
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from natgrad_apps.graphs import runs
from natgrad_apps.graphs.compare_config import TUNE_SEED, CompareConfig
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.splits import Split
from natgrad_apps.runner import study
from natgrad_apps.runner.folder import RunFolder

OPTIMIZERS = ("natural_gradient", "adam")

Say = Callable[[str], None]
Run = Callable[[TrainConfig, GraphData], "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        seed: Its seed.
        val_accuracy: At the chosen epoch.
        val_nll: At the chosen epoch.
        test_accuracy: At the chosen epoch.
        nll: On the test nodes at the chosen epoch.
        ece: On the test nodes at the chosen epoch.
        best_epoch: The chosen epoch.
        epochs: Epochs run.
        epochs_to_target: First epoch at the target, None if it was never reached.
        seconds: Training time, without evaluations.
    """

    seed: int
    val_accuracy: float
    val_nll: float
    test_accuracy: float
    nll: float
    ece: float
    best_epoch: int
    epochs: int
    epochs_to_target: int | None
    seconds: float

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Outcome:
        """From a JSON file, where NaN (a split without validation nodes, say) is null."""
        found: dict[str, Any] = {name: math.nan if value is None else value for name, value in saved.items()}
        return cls(**{**found, "epochs_to_target": saved["epochs_to_target"]})


@dataclass(frozen=True)
class Point:
    """A point of a grid."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Contestant:
    """An optimizer with the point that its grid chose, and its runs.

    Attributes:
        name: natural_gradient or adam.
        point: What was chosen.
        scores: Mean validation score of each point tried: accuracy, in [0, 1].
        outcomes: Runs, by seed.
    """

    name: str
    point: Point
    scores: Sequence[tuple[Point, float]]
    outcomes: Sequence[Outcome]

    def summary(self) -> dict[str, Any]:
        """Means and standard deviations."""
        hits = [o.epochs_to_target for o in self.outcomes if o.epochs_to_target is not None]
        found: dict[str, Any] = {name: _spread([getattr(o, name) for o in self.outcomes]) for name in _MEASURED}
        found["epochs_to_target"] = {**_spread([float(h) for h in hits]), "reached": len(hits), "runs": len(self.outcomes)}
        found["milliseconds_per_epoch"] = 1e3 * sum(o.seconds for o in self.outcomes) / sum(o.epochs for o in self.outcomes)
        found["chosen"] = asdict(self.point)
        found["grid"] = [{**asdict(point), "val_accuracy": score} for point, score in self.scores]
        found["runs"] = [asdict(o) for o in self.outcomes]
        return found


_MEASURED = ("test_accuracy", "nll", "ece", "best_epoch", "seconds", "val_accuracy")


def run_once(config: TrainConfig, data: GraphData, check: Callable[[], None] = lambda: None) -> Outcome:
    """Train once.

    Args:
        config: The run.
        data: The whole graph.
        check: Called before every epoch; it may raise to give the run up.
    """
    trainer = runs.open_trainer(config, data)
    while not trainer.done:
        check()
        trainer.run_epoch()
    trainer.load_best()
    _, val, test = trainer.evaluate()
    nan = math.nan
    progress = trainer.progress
    return Outcome(
        seed=config.seed,
        val_accuracy=nan if val is None else val.accuracy,
        val_nll=nan if val is None else val.nll,
        test_accuracy=nan if test is None else test.accuracy,
        nll=nan if test is None else test.nll,
        ece=nan if test is None else test.ece,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        epochs_to_target=progress.first_hit,
        seconds=progress.seconds,
    )


def contest(config: CompareConfig, data: GraphData, say: Say, run: Run = run_once) -> list[Contestant]:
    """Tune both optimizers, then run both with the same seeds, in turn.

    Args:
        config: What to compare.
        data: The whole graph.
        say: Is told what happens.
        run: Trains once; another one may remember what an interrupted comparison has trained already.

    Returns:
        Natural gradient and Adam.
    """
    tuned = {name: _tune(config, data, name, say, run) for name in OPTIMIZERS}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in OPTIMIZERS}
    for k in range(config.seeds):
        for name in OPTIMIZERS:
            done = run(_with(config, name, tuned[name][0], config.seed + k), data)
            outcomes[name].append(done)
            say(f"seed {done.seed} {name}: test {100 * done.test_accuracy:.2f}%, epoch {done.best_epoch}, {done.seconds:.1f} s")
    return [Contestant(name, *tuned[name], outcomes[name]) for name in OPTIMIZERS]


def compare(config: CompareConfig, out: Path) -> None:
    """Run the comparison, print the table, and leave ``results.json``; arguments and errors of `study.start`."""
    study.start(config, out, _open, _run)


def resume(path: Path) -> None:
    """Go on with the trainings that are not finished; arguments and errors of `study.resume`."""
    study.resume(path, CompareConfig, _open, _run)


def _open(config: CompareConfig) -> tuple[GraphData, Split]:
    """The data, with a network that could be trained on it."""
    data = runs.open_data(config)
    return data, runs.open_trainer(config.run(), data).split


def _run(config: CompareConfig, opened: tuple[GraphData, Split], folder: RunFolder) -> None:
    data, split = opened
    names = [_name(_with(config, o, p, TUNE_SEED + k)) for o in OPTIMIZERS for p in _points(config, o) for k in range(config.tune_seeds)]
    names += [_name(_with(config, o, _points(config, o)[0], config.seed + k)) for o in OPTIMIZERS for k in range(config.seeds)]
    command = f"{runs.PROGRAM} compare --resume {shlex.quote(str(folder.path))}"
    plan = study.Plan(f"{config.model.name} on {data.name}", "trainings", list(dict.fromkeys(names)), command)
    start = time.perf_counter()
    with study.session(plan, folder) as work:

        def remembered(run: TrainConfig, data: GraphData) -> Outcome:
            name = _name(run)
            if name not in work.done:
                work.keep(name, asdict(run_once(run, data, work.check)))
            return Outcome.read(work.done[name])

        work.view.say(f"{data.name}, {split}; {config.seeds} paired seeds from {config.seed}")
        contestants = contest(config, data, work.view.say, remembered)
        results: dict[str, Any] = {
            "runner": runs.PROGRAM,
            "dataset": data.name,
            "split": {"name": split.name, "text": str(split)},
            "model": config.model.name,
            "target": config.target,
            **{c.name: c.summary() for c in contestants},
            "paired_difference": paired(contestants[0], contestants[1]),
            "seeds": [config.seed + k for k in range(config.seeds)],
            "wall_seconds_of_this_session": time.perf_counter() - start,
            **runs.origin(torch.device(runs.resolve_device(config.device))),
        }
        folder.write_results(results)
    text = table(contestants)
    folder.log(text)
    print(text)
    print(f"run folder: {folder.path}")


def _name(run: TrainConfig) -> str:
    """Name of a training; those of the grid have seeds of their own."""
    optimizer = run.optimizer
    point = f"_lr_{optimizer.lr:g}_decay_{optimizer.weight_decay:g}" if run.seed >= TUNE_SEED else ""
    return f"{optimizer.name}{point}_seed_{run.seed}"


def paired(first: Contestant, second: Contestant) -> dict[str, float]:
    """Mean, standard deviation and standard error of the differences in test accuracy, first minus second, seed by seed."""
    differences = [a.test_accuracy - b.test_accuracy for a, b in zip(first.outcomes, second.outcomes, strict=True)]
    spread = _spread(differences)
    return {**spread, "se": spread["std"] / math.sqrt(len(differences))}


def table(contestants: Sequence[Contestant]) -> str:
    """The comparison as text."""
    lines = [
        f"{'optimizer':<18}{'lr':>7}{'decay':>8}{'test accuracy %':>18}{'nll':>8}{'ece %':>7}{'to target':>14}{'ms/epoch':>10}{'s':>7}"
    ]
    for c in contestants:
        s = c.summary()
        hits = s["epochs_to_target"]
        reached = f"{hits['mean']:.1f} ({hits['reached']}/{hits['runs']})" if hits["reached"] else f"- (0/{hits['runs']})"
        accuracy = f"{100 * s['test_accuracy']['mean']:.2f} +- {100 * s['test_accuracy']['std']:.2f}"
        lines.append(
            f"{c.name:<18}{c.point.lr:>7g}{c.point.weight_decay:>8g}{accuracy:>18}{s['nll']['mean']:>8.3f}{100 * s['ece']['mean']:>7.1f}"
            f"{reached:>14}{s['milliseconds_per_epoch']:>10.2f}{s['seconds']['mean']:>7.2f}"
        )
    difference = paired(contestants[0], contestants[1])
    lines.append(
        f"paired difference in test accuracy: {100 * difference['mean']:+.2f} +- {100 * difference['se']:.2f} points (standard error)"
    )
    return "\n".join(lines)


def _tune(config: CompareConfig, data: GraphData, name: str, say: Say, run: Run) -> tuple[Point, list[tuple[Point, float]]]:
    """The point with the highest mean validation accuracy at the chosen epoch; the first one wins a tie."""
    if config.tune_seeds == 0:
        return Point(_rates(config, name)[0], config.optimizer.weight_decay), []
    scores = []
    for point in _points(config, name):
        found = [run(_with(config, name, point, TUNE_SEED + k), data) for k in range(config.tune_seeds)]
        scores.append((point, statistics.mean(o.val_accuracy for o in found)))
        say(f"grid {name} lr {point.lr:g} weight decay {point.weight_decay:g}: validation {100 * scores[-1][1]:.2f}%")
    return max(scores, key=lambda pair: pair[1])[0], scores


def _rates(config: CompareConfig, name: str) -> list[float]:
    return config.natural_gradient_lr if name == "natural_gradient" else config.adam_lr


def _points(config: CompareConfig, name: str) -> list[Point]:
    decays = config.weight_decay or [config.optimizer.weight_decay]
    return [Point(lr, decay) for lr, decay in itertools.product(_rates(config, name), decays)]


def _with(config: CompareConfig, name: str, point: Point, seed: int) -> TrainConfig:
    optimizer = replace(config.optimizer, name=name, lr=point.lr, weight_decay=point.weight_decay)  # type: ignore[arg-type]
    return config.run(optimizer=optimizer, seed=seed)


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"mean": math.nan, "std": math.nan}
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
