"""The verb ``active``: learning curves over the number of labels, for chosen rows and for rows at random, seed by seed resumable."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
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
from natgrad_apps.runner import figures, provenance, study
from natgrad_apps.runner.folder import RunFolder

Curve = list[dict[str, Any]]
Key = tuple[Acquisition, int]
"""Acquisition and seed."""


def run_active(config: ActiveConfig, out: Path) -> None:
    """Measure every acquisition with every seed and leave a run folder; arguments and errors of `study.start`."""
    study.start(config, out, _open, _run)


def resume_active(path: Path) -> None:
    """Go on with the curves that are not finished; arguments and errors of `study.resume`."""
    study.resume(path, ActiveConfig, _open, _run)


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
    keys: dict[str, Key] = {f"{a}_{seed:02d}": (a, seed) for seed in config.seed_numbers() for a in config.acquisitions}
    title, metric = f"{config.method} {table.name}", _metric(table)
    plan = study.Plan(title, "curves", list(keys), f"{PROGRAM} active --resume {shlex.quote(str(folder.path))}")
    start = time.perf_counter()
    with study.session(plan, folder) as work:
        for name in work.left:
            acquisition, seed = keys[name]
            rounds = Rounds(acquisition, config.rounds, config.per_round)
            curve = learn_actively(table, draw_pool(table, config.sizes, seed), config, rounds, seed, work.check)
            work.keep(name, curve, f"{acquisition}, seed {seed}: {metric} {curve[0][metric]:.4g} -> {curve[-1][metric]:.4g}")
        results = _summarize(config, table, {key: work.done[name] for name, key in keys.items()}, time.perf_counter() - start)
        _write_metrics(folder, results["curves"])
        folder.write_results(results)
        picture = _plot(results, folder.figures / "active_learning.png")
    print(_text(title, results))
    print(f"run folder: {folder.path}   picture: {picture.name}")


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
