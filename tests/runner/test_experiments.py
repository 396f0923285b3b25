"""Which runs a picture averages over, what it calls them, and what its legends say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from natgrad_apps.agents.experiments import NothingToDrawError, gather, seed_folders
from natgrad_apps.agents.plotting import plot_runs
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import figures
from natgrad_apps.runner.folder import CONFIG
from tests.runner.test_figures import write_run

Capture = pytest.CaptureFixture[str]
Plot = Callable[..., Figure]


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plot:
    """Draws run folders and hands back the figure, laid out."""

    def draw(*paths: Path) -> Figure:
        drawn: list[Figure] = []
        with monkeypatch.context() as patch:
            patch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
            plot_runs(paths, tmp_path / "x.png")
        drawn[0].canvas.draw()
        return drawn[0]

    return draw


def names(figure: Figure, panel: int = 0) -> list[str]:
    legend = figure.axes[panel].get_legend()
    return [] if legend is None else [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def key(figure: Figure) -> list[str]:
    assert len(figure.legends) == 1
    return [text.get_text() for text in figure.legends[0].get_texts()]


def group(folder: Path, seeds: int, slope: float = 1.0) -> Path:
    for seed in range(seeds):
        write_run(folder / f"seed_{seed}", seed, slope=slope)
        shutil.copy(folder / f"seed_{seed}" / CONFIG, folder / f"seed_{seed}.yaml")
    return folder


def shorten(run: Path, rows: int) -> Path:
    file = run / "metrics.csv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[: rows + 1]))
    return run


def test_a_folder_given_twice_is_drawn_once(tmp_path: Path, capsys: Capture) -> None:
    run = write_run(tmp_path / "cart", 0)
    ((experiment,),) = gather([run, tmp_path / "." / "cart"]).values()
    assert len(experiment.runs) == 1
    assert "is given more than once and drawn once" in capsys.readouterr().err


def test_equal_seeds_are_not_averaged(tmp_path: Path, plot: Plot, capsys: Capture) -> None:
    runs = [write_run(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert names(plot(*runs)) == ["a", "b", "c"]
    assert f"{str(runs[0])!r}, {str(runs[1])!r} have the same configuration and the same seed, 0" in capsys.readouterr().err
    groups = [group(tmp_path / "x" / "new", 2), group(tmp_path / "x" / "old", 2)]
    assert names(plot(*groups)) == ["new (mean of 2 seeds)", "old (mean of 2 seeds)"]


def test_a_group_is_its_runs(tmp_path: Path, plot: Plot, capsys: Capture) -> None:
    folder = group(tmp_path / "seeds", 11)
    assert [path.name for path in seed_folders(folder)] == [f"seed_{i}" for i in range(11)], "by number, not by letter"
    assert seed_folders(folder / "seed_0") == seed_folders(tmp_path / "none") == []
    assert "interquartile mean of 11 seeds" in plot(folder).get_suptitle()
    shutil.rmtree(folder / "seed_10")
    shorten(folder / "seed_9", 0)
    assert "interquartile mean of 9 seeds" in plot(folder).get_suptitle()
    told = capsys.readouterr().err
    assert "seed_10' has not begun and is left out" in told
    assert "seed_9' has no returns to draw: no episode has ended yet (metrics.csv has 0 rows); it is left out" in told
    with pytest.raises(NothingToDrawError):
        gather([folder / "seed_9"])
    write_run(tmp_path / "all" / "run", 0)
    with pytest.raises(ConfigError, match="is no run folder, but holds 1: give those, as "):
        gather([tmp_path / "all"])


@pytest.mark.parametrize(("seeds", "name"), [(2, "mean"), (3, "mean"), (4, "interquartile mean")])
def test_the_mean_is_called_what_it_is(seeds: int, name: str, tmp_path: Path, plot: Plot) -> None:
    values = np.array([[0.0], [1.0], [2.0], [9.0]])[:seeds]
    assert (figures.interquartile_mean(values) == values.mean(0)).all() == (name == "mean")
    assert plot(group(tmp_path / "some", seeds)).get_suptitle() == f"Learning curve: ACKTR on CartPole-v1, {name} of {seeds} seeds"


def test_names_tell_experiments_apart(tmp_path: Path, plot: Plot) -> None:
    int3 = write_run(tmp_path / "int3", 0, slope=3.0)
    first, second = group(tmp_path / "gint", 2), group(tmp_path / "deep" / "gint", 2, slope=2.0)
    assert names(plot(int3, *seed_folders(first))) == ["int3", "gint (mean of 2 seeds)"]
    parent = tmp_path.name
    assert names(plot(first, second)) == [f"{parent}/gint (mean of 2 seeds)", "deep/gint (mean of 2 seeds)"]
    assert names(plot(first / "seed_0", second / "seed_0")) == [f"{parent}/gint/seed_0", "deep/gint/seed_0"]
    alike = [write_run(tmp_path / f"cart-{i}", i, slope=4.0 + i // 2) for i in range(4)]
    assert names(plot(*alike)) == ["cart-0, cart-1 (mean of 2 seeds)", "cart-2, cart-3 (mean of 2 seeds)"]
    assert names(plot(*alike[:2], int3)) == ["cart (mean of 2 seeds)", "int3"]


@pytest.mark.parametrize("count", [7, 12])
def test_many_runs_are_told_apart(count: int, tmp_path: Path, plot: Plot) -> None:
    figure = plot(*[write_run(tmp_path / f"run{i}", 0, slope=1.0 + i) for i in range(count)])
    (axis,) = figure.axes
    assert names(figure) == [f"run{i}" for i in range(count)]
    assert key(figure) == ["training, smoothed", "evaluation, mean over episodes"]
    curves, dots = axis.get_lines()[::2], axis.get_lines()[1::2]
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == count
    assert [to_hex(dot.get_color()) for dot in dots] == [to_hex(line.get_color()) for line in curves]
    legend = axis.get_legend()
    assert legend is not None
    panel, beside, below = (part.get_window_extent() for part in (axis, legend, figure.legends[0]))
    assert beside.x0 >= panel.x1, "nothing lies over the curves"
    assert below.y1 <= panel.y0
    assert beside.x1 <= figure.bbox.x1
    assert beside.y0 > below.y1


def test_a_name_has_one_color_in_all_panels(tmp_path: Path, plot: Plot) -> None:
    runs = [write_run(tmp_path / "b" / "ekfac", 0, environment="B-v0")]
    runs += [write_run(tmp_path / "a" / name, 0, slope=i, environment="A-v0") for i, name in enumerate(("kfac", "ekfac"))]
    figure = plot(*runs)
    assert figure.axes[0].get_title() == "B-v0, seed 0"
    assert figure.axes[0].get_lines()[-1].get_color() == figure.axes[1].get_lines()[-1].get_color()


def test_the_key_has_what_can_be_seen(tmp_path: Path, plot: Plot) -> None:
    run = write_run(tmp_path / "run", 0)
    rough, smooth = "training, episodes of each log step", "training, smoothed"
    measured = "evaluation, mean over episodes (bar: standard deviation)"
    assert key(plot(run)) == [rough, smooth, measured]
    # Four rows: their distance is a third of the range, 6.7 deviations of the smoothing's weights, so the two lines are one.
    assert key(plot(shorten(run, 4))) == [rough]
    assert key(plot(shorten(run, 1))) == ["training, the only log step"]
    seeds = group(tmp_path / "seeds", 2)
    assert key(plot(seeds)) == [
        smooth,
        "training, single seeds",
        "95% bootstrap interval over seeds",
        "evaluation, mean over episodes",
    ]


def test_seeds_that_have_no_steps_in_common_are_drawn_one_by_one(tmp_path: Path, plot: Plot) -> None:
    seeds = group(tmp_path / "seeds", 2)
    shorten(seeds / "seed_0", 2)
    late = (seeds / "seed_1" / "metrics.csv").read_text().splitlines(keepends=True)
    (seeds / "seed_1" / "metrics.csv").write_text("".join([late[0], *late[-5:]]))
    figure = plot(seeds)
    assert figure.get_suptitle() == "Learning curve: ACKTR on CartPole-v1, each of 2 seeds"
    assert "95% bootstrap interval over seeds" not in key(figure)
