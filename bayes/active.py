"""The verb ``active``: learning curves over the number of labels, for chosen rows and for rows at random, seed by seed resumable."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import natgrad_apps
from natgrad_apps.bayes.acquiring import Acquisition, Rounds, draw_pool, learn_actively
from natgrad_apps.bayes.data import Table, load
from natgrad_apps.bayes.study_config import ActiveConfig
from natgrad_apps.bayes.training import PACKAGES, PROGRAM
from natgrad_apps.bayes.uci import summary
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic, figures, provenance, schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.folder import CONFIG, RunFolder, check_new, read_results, require_run
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.progress import ProgressView

Curve = list[dict[str, Any]]
Key = tuple[Acquisition, int]
"""Acquisition and seed."""


class StoppedError(Exception):
    """The training of a model was given up, because a signal arrived."""


def run_active(config: ActiveConfig, out: Path) -> None:
    """Measure every acquisition with every seed and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration or the data cannot be used; nothing has been written then.
        InterruptedRunError: A signal arrived; finished curves are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    check_new(out)
    table = _open(config)
    with ExitStack() as stack:
        folder = RunFolder.create(out, schema.to_yaml(config))
        stack.callback(folder.close)
        _run(config, table, folder)


def resume_active(path: Path) -> None:
    """Go on with the curves that are not finished.

    Raises:
        ConfigError: It is no folder of such a run.
        InterruptedRunError: A signal arrived; finished curves are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    require_run(path)
    if read_results(path) is not None:
        print(f"{path} is complete; nothing is left to do")
        return
    config = schema.read(ActiveConfig, read_file(path / CONFIG))
    table = _open(config)
    with ExitStack() as stack:
        folder = RunFolder.reopen(path)
        stack.callback(folder.close)
        _run(config, table, folder)


def _open(config: ActiveConfig) -> Table:
    """The data, with enough rows for every seed."""
    torch.set_num_threads(config.threads)
    table = load(config.dataset, config.table)
    for seed in config.seed_numbers():
        candidates = len(draw_pool(table, config.sizes, seed).candidates)
    if config.rounds * config.per_round > candidates:
        raise ConfigError(
            f"rounds={config.rounds} of per_round={config.per_round} labels ask for more than the {candidates} candidates; lower one"
        )
    return table


def _run(config: ActiveConfig, table: Table, folder: RunFolder) -> None:
    keys = [(acquisition, seed) for seed in config.seed_numbers() for acquisition in config.acquisitions]
    done = {key: found for key in keys if (found := _read(folder.path, key)) is not None}
    title = f"{config.method} {table.name}"
    resume = f"{PROGRAM} active --resume {shlex.quote(str(folder.path))}"
    view = ProgressView(title, len(keys), len(done), folder.log)
    view.unit = "curves"
    folder.log(f"start with {len(keys) - len(done)} of {len(keys)} curves")
    start = time.perf_counter()
    with ExitStack() as stack:
        flag = stack.enter_context(InterruptFlag())
        stack.enter_context(failures_to(folder, resume))
        stack.enter_context(view)
        stack.enter_context(warnings_to(view))
        (folder.path / "curves").mkdir(exist_ok=True)
        for key, curve in _curves(config, table, [k for k in keys if k not in done], flag):
            atomic.write_json(_file(folder.path, key), curve)
            done[key] = curve
            metric = _metric(table)
            view.say(f"{key[0]}, seed {key[1]}: {metric} {curve[0][metric]:.4g} -> {curve[-1][metric]:.4g}")
            view.update(len(done), {}, last=len(done) == len(keys))
        if len(done) < len(keys):
            folder.log(f"interrupted by {flag.name} after {len(done)} of {len(keys)} curves")
            raise InterruptedRunError(resume)
        results = _summarize(config, table, done, time.perf_counter() - start)
        _write_metrics(folder, results["curves"])
        folder.write_results(results)
        picture = _plot(results, folder.figures / "active_learning.png")
    print(_text(title, results))
    print(f"run folder: {folder.path}   picture: {picture.name}")


def _curves(config: ActiveConfig, table: Table, left: Sequence[Key], flag: InterruptFlag) -> Iterator[tuple[Key, Curve]]:
    """Curves as they are finished; ends early when a signal arrives."""

    def check() -> None:
        if flag.is_set:
            raise StoppedError

    for acquisition, seed in left:
        plan = Rounds(acquisition, config.rounds, config.per_round)
        try:
            yield (acquisition, seed), learn_actively(table, draw_pool(table, config.sizes, seed), config, plan, seed, check)
        except StoppedError:
            return


def _metric(table: Table) -> str:
    return "accuracy" if table.classes else "rmse"


def _summarize(config: ActiveConfig, table: Table, done: Mapping[Key, Curve], seconds: float) -> dict[str, Any]:
    seeds, metrics = config.seed_numbers(), (_metric(table), "loglik_pointwise")
    curves: dict[str, Any] = {}
    for acquisition in config.acquisitions:
        runs = [done[acquisition, seed] for seed in seeds]
        curves[acquisition] = {"labels": [point["labels"] for point in runs[0]]}
        for metric in metrics:
            points = [summary([float(p[metric]) for p in at]) for at in zip(*runs, strict=True)]
            curves[acquisition][metric] = {name: [p[name] for p in points] for name in ("mean", "se")}
    gains = {}
    if "random" in config.acquisitions:
        for acquisition in (a for a in config.acquisitions if a != "random"):
            pairs = [(done[acquisition, s][1:], done["random", s][1:]) for s in seeds]  # the first models are the same
            gains[acquisition] = {m: summary([_mean_difference(own, base, m) for own, base in pairs]) for m in metrics}
    return {
        "runner": PROGRAM,
        "dataset": config.dataset,
        "method": config.method,
        "metric": _metric(table),
        "curves": curves,
        "difference_to_random": gains,
        "rows": {"start": config.start, "pool": config.pool, "test": config.test},
        "seeds": seeds,
        "wall_seconds_of_this_session": seconds,
        "packages": provenance.package_versions(PACKAGES),
        "source": provenance.git_commit(Path(natgrad_apps.__file__)),
        "machine": provenance.machine(torch.device("cpu")),
    }


def _mean_difference(own: Curve, base: Curve, metric: str) -> float:
    return float(np.mean([p[metric] - q[metric] for p, q in zip(own, base, strict=True)]))


def _write_metrics(folder: RunFolder, curves: Mapping[str, Any]) -> None:
    """A row for each number of labels."""
    labels = next(iter(curves.values()))["labels"]
    for i, count in enumerate(labels):
        row = {f"{a}/{m}/{k}": v[k][i] for a, c in curves.items() for m, v in c.items() if m != "labels" for k in ("mean", "se")}
        folder.metrics.write(count, row)


def _text(title: str, results: Mapping[str, Any]) -> str:
    metric, curves = results["metric"], results["curves"]
    labels = next(iter(curves.values()))["labels"]
    ends = "  ".join(f"{name} {c[metric]['mean'][-1]:.4g} +- {c[metric]['se'][-1]:.2g}" for name, c in curves.items())
    lines = [f"{title}, {len(results['seeds'])} seeds, {labels[0]} to {labels[-1]} labels; test {metric} at the end: {ends}"]
    for name, gain in results["difference_to_random"].items():
        found = gain[metric]
        lines.append(f"{name} less random, mean over the curve, paired by seed: {metric} {found['mean']:+.4g} +- {found['se']:.2g}")
    return "\n".join(lines)


def _plot(results: Mapping[str, Any], path: Path) -> Path:
    metric = results["metric"]
    figure, axes = figures.new_figure(f"Active learning: {results['method']} on {results['dataset']}, {len(results['seeds'])} seeds", 2)
    for axis, name in zip(axes, (metric, "loglik_pointwise"), strict=True):
        for (acquisition, curve), color in zip(results["curves"].items(), figures.COLORS, strict=False):
            labels, mean, error = (np.array(v) for v in (curve["labels"], curve[name]["mean"], curve[name]["se"]))
            axis.plot(labels, mean, "o-", markersize=3, color=color, label=acquisition)
            if np.isfinite(error).all():
                axis.fill_between(labels, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        axis.set_xlabel("labels (bands: standard error over seeds)")
        axis.set_ylabel(f"test {name}")
        axis.legend(frameon=False, fontsize=8)
    figures.save(figure, path)
    return path


def _file(folder: Path, key: Key) -> Path:
    return folder / "curves" / f"{key[0]}_{key[1]:02d}.json"


def _read(folder: Path, key: Key) -> Curve | None:
    file = _file(folder, key)
    if not file.is_file():
        return None
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} is damaged: {error}; remove it to train that curve again") from error
