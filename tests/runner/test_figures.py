"""Learning curves: the numbers behind them, and that the picture shows something."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from natgrad_apps.agents.experiments import Run
from natgrad_apps.agents.plotting import plot_runs
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.figures import Curve, bootstrap_band, interquartile_mean, new_figure, on_common_grid, save, smooth


def write_run(folder: Path, seed: int, *, environment: str = "CartPole-v1", slope: float = 1.0, evaluations: bool = True) -> Path:
    """A run folder with a noisy straight line as its learning curve."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"environment: {{id: {environment}}}\nagent: {{slope: {slope}}}\nseed: {seed}\n")
    noise = np.random.default_rng(seed).normal(0, 5, 40)
    lines = ["step,rollout/recent_return,eval/mean_reward,eval/std_reward"]
    for i in range(40):
        measured = f"{slope * i + 3},{2.0}" if evaluations and i % 10 == 9 else ","
        lines.append(f"{(i + 1) * 100},{slope * i + noise[i]},{measured}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def colors(path: Path) -> int:
    """Number of different colors of a PNG; a blank figure has one, axes and text alone only grays."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(io.BytesIO(path.read_bytes()))[..., :3]
    saturated = np.ptp(pixels, axis=-1) > 0.2
    return len(np.unique(np.round(pixels[saturated], 1), axis=0))


def test_smoothing_keeps_lines_and_takes_noise_away() -> None:
    steps = np.linspace(0, 1000, 201)
    line = smooth(Curve(steps, 2 * steps))
    # A symmetric mean of a line is the line; four deviations from the ends, where the window is cut off, 3e-5 of the weight is missing.
    np.testing.assert_allclose(line.values[40:-40], 2 * steps[40:-40], rtol=1e-4)
    noise = np.random.default_rng(0).normal(size=201)
    assert smooth(Curve(steps, noise)).values[40:-40].std() < 0.4 * noise.std()


def test_short_curves_are_left_alone() -> None:
    curve = Curve(np.array([1.0, 2.0]), np.array([3.0, 9.0]))
    assert smooth(curve) is curve


def test_runs_meet_on_the_steps_that_all_cover() -> None:
    first = Curve(np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    second = Curve(np.array([5.0, 20.0]), np.array([50.0, 200.0]))
    steps, values = on_common_grid([first, second])
    assert (steps[0], steps[-1]) == (5.0, 10.0)
    np.testing.assert_allclose(values, [steps, 10 * steps])
    with pytest.raises(ConfigError, match="no steps in common"):
        on_common_grid([first, Curve(np.array([11.0, 12.0]), np.array([0.0, 0.0]))])


def test_the_bootstrap_band_has_the_width_of_theory() -> None:
    """About 1.96 sqrt(1.195 / n) s to each side of the interquartile mean of n normal values.

    The asymptotic variance of the mean trimmed by a share a at each end is E[min(|x|, q)^2] / (1 - 2a)^2 / n, q the upper a-quantile
    (Huber's influence function); for the normal and a = 1/4 that is 1.195 / n.
    """
    values = np.random.default_rng(1).normal(size=(400, 1))
    low, high = bootstrap_band(values)
    half = 1.96 * values.std() * np.sqrt(1.195 / 400)
    middle = interquartile_mean(values)[0]
    # 2,000 resamples leave about 4 % error in a 2.5 % quantile, 400 values about 4 % in the estimated spread; three times both together.
    np.testing.assert_allclose([middle - low[0], high[0] - middle], half, rtol=0.18)


def test_a_single_run_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 0)
    out = plot_runs([run], tmp_path / "figures" / "curve.png")
    assert colors(out) > 3
    assert imread(out).shape[:2] > (500, 900)


def test_an_empty_figure_has_no_colors(tmp_path: Path) -> None:
    """The guard of `colors`: axes alone do not count as content."""
    figure, _ = new_figure("empty")
    save(figure, tmp_path / "empty.png")
    assert colors(tmp_path / "empty.png") == 0


def test_seeds_and_environments_and_methods_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"slow-{seed}", seed) for seed in range(3)]
    runs += [write_run(tmp_path / f"fast-{seed}", seed, slope=2.0) for seed in range(2)]
    runs.append(write_run(tmp_path / "other", 0, environment="Acrobot-v1", evaluations=False))
    out = plot_runs(runs, tmp_path / "curves.png")
    assert colors(out) > colors(plot_runs(runs[:1], tmp_path / "one.png"))
    # Two environments, two panels, one above the other.
    assert imread(out).shape[0] > 1.5 * imread(tmp_path / "one.png").shape[0]


def test_seeds_of_one_experiment_share_their_settings(tmp_path: Path) -> None:
    first, second = (Run(write_run(tmp_path / str(seed), seed)) for seed in (1, 2))
    other = Run(write_run(tmp_path / "other", 1, slope=3.0))
    assert first.settings == second.settings != other.settings


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run folder"):
        plot_runs([tmp_path / "none"], tmp_path / "x.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("environment: {id: X}\n")
    with pytest.raises(ConfigError, match="no returns to draw"):
        plot_runs([empty], tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_runs([write_run(tmp_path / "run", 0)], tmp_path / "file" / "x.png")
    assert not (tmp_path / "x.png").exists()
