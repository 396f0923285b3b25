"""Learning curves from run folders: one run, or the interquartile mean of several seeds with a bootstrap band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import figures, metrics
from natgrad_apps.runner.figures import COLORS, CONFIDENCE, Curve
from natgrad_apps.runner.folder import CONFIG, require_run

RECENT, WINDOW, EVALUATION, SPREAD = "rollout/recent_return", "rollout/ep_rew_mean", "eval/mean_reward", "eval/std_reward"


class NothingToDrawError(ConfigError):
    """No episode has ended in a run yet."""


class Run:
    """What a picture needs of one run folder.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder.
        NothingToDrawError: No episode has ended in it yet.
    """

    def __init__(self, path: Path) -> None:
        require_run(path)
        self.path = path
        self.config: dict[str, Any] = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        file = path / "metrics.csv"
        rows = metrics.read_rows(file) if file.is_file() else []
        self.recent = _curve(rows, RECENT)
        self.evaluations = _curve(rows, EVALUATION, SPREAD)
        if not len(self.recent.steps) and not len(self.evaluations.steps):
            raise NothingToDrawError(f"{str(path)!r} has no returns to draw: no episode has ended yet (metrics.csv has {len(rows)} rows)")

    @property
    def environment(self) -> str:
        """Id of the environment."""
        return str(self.config["environment"]["id"])

    @property
    def settings(self) -> str:
        """The configuration but for what does not change the method; equal for seeds of one experiment."""
        neutral = {"seed", "device", "threads", "checkpoint_every"}
        return yaml.safe_dump({k: v for k, v in self.config.items() if k not in neutral})


def plot_runs(paths: Sequence[Path], out: Path) -> Path:
    """Draw learning curves: one panel an environment, one curve an experiment; runs that differ in their seed only are one experiment.

    Args:
        paths: Run folders.
        out: The PNG file.

    Returns:
        The file.

    Raises:
        ConfigError: A folder is no run folder, or the picture cannot be written.
        NothingToDrawError: No episode has ended in a run yet.
    """
    runs = [Run(path) for path in paths]
    panels: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        panels.setdefault(run.environment, {}).setdefault(run.settings, []).append(run)
    title = f"Learning curve: ACKTR on {', '.join(panels)}" + (f", seed {runs[0].config['seed']}" if len(runs) == 1 else "")
    figure, axes = figures.new_figure(title, len(panels))
    for axis, experiments in zip(axes, panels.values(), strict=True):
        for index, members in enumerate(experiments.values()):
            color, label = COLORS[index % len(COLORS)], _label(members, alone=len(experiments) == 1)
            if len(members) > 1 and all(len(run.recent.steps) for run in members):
                _draw_seeds(axis, members, color, label)
            else:
                for run in members:
                    _draw_run(axis, run, color, label)
        environment = experiments[next(iter(experiments))][0].environment
        axis.set_ylabel("return (sum of rewards of an episode)")
        axis.set_xlabel("environment steps" + (" (4 frames each)" if "NoFrameskip" in environment else ""))
        if len(panels) > 1:
            axis.set_title(environment, fontsize=10)
        axis.legend(frameon=False, fontsize=8, loc="best")
    figures.save(figure, out)
    return out


def _draw_run(axis: Axes, run: Run, color: str, label: str) -> None:
    """Every point faintly, the smoothed curve, and the evaluations."""
    prefix = f"{label}: " if label else ""
    axis.plot(
        run.recent.steps, run.recent.values, color=color, alpha=0.25, linewidth=0.8, label=f"{prefix}training, episodes of each log step"
    )
    line = figures.smooth(run.recent)
    axis.plot(line.steps, line.values, color=color, linewidth=2, label=f"{prefix}training, smoothed")
    if len(run.evaluations.steps):
        points = run.evaluations
        axis.errorbar(
            points.steps,
            points.values,
            yerr=points.spread,
            fmt="o",
            markersize=4,
            color="black",
            ecolor="0.6",
            elinewidth=1,
            capsize=2,
            label=f"{prefix}evaluation, mean and deviation over episodes",
            zorder=3,
        )


def _draw_seeds(axis: Axes, runs: Sequence[Run], color: str, label: str) -> None:
    """Interquartile mean over seeds of the smoothed curves with a bootstrap band, each seed faintly, and that of the evaluations."""
    curves = [figures.smooth(run.recent) for run in runs]
    steps, values = figures.on_common_grid(curves)
    low, high = figures.bootstrap_band(values)
    prefix = f"{label}: " if label else ""
    for curve in curves:
        axis.plot(curve.steps, curve.values, color=color, alpha=0.25, linewidth=0.8)
    axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0, label=f"{prefix}{CONFIDENCE:.0%} bootstrap interval")
    name = "interquartile mean" if len(runs) > 3 else "mean"
    axis.plot(steps, figures.interquartile_mean(values), color=color, linewidth=2, label=f"{prefix}training, {name} of {len(runs)} seeds")
    evaluated = [run.evaluations for run in runs if len(run.evaluations.steps)]
    if len(evaluated) == len(runs):
        common = np.array(sorted(set.intersection(*(set(c.steps.tolist()) for c in evaluated))))
        points = np.array([[c.values[np.searchsorted(c.steps, s)] for s in common] for c in evaluated])
        axis.plot(
            common,
            figures.interquartile_mean(points),
            "o",
            markersize=4,
            color=color,
            markeredgecolor="black",
            label=f"{prefix}evaluation, {name} of seeds",
            zorder=3,
        )


def _label(runs: Sequence[Run], *, alone: bool) -> str:
    """What tells one experiment from the others: the folder, without what looks like the seed."""
    if alone:
        return ""
    return runs[0].path.name if len(runs) == 1 else runs[0].path.name.rstrip("0123456789").rstrip("-_ ") or runs[0].path.name


def _curve(rows: list[dict[str, str]], name: str, spread: str | None = None) -> Curve:
    points = metrics.column(rows, name)
    bars = metrics.column(rows, spread) if spread is not None else []
    return Curve(
        np.array([s for s, _ in points], dtype=float),
        np.array([v for _, v in points], dtype=float),
        np.array([v for _, v in bars], dtype=float),
    )
