"""Finished trainings of agents as tables: one on the terminal, the same on a page of the documentation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.table import Table

from benchmarks._pages import mean_and_error, write_block
from benchmarks._records import Job, Trained
from benchmarks._timing import ROOT
from natgrad_apps.runner.figures import interquartile_mean

COLUMNS = (
    "environment",
    "learner",
    "seeds",
    "last policy, by seed",
    "IQM",
    "mean",
    "best policy",
    "steps to the threshold, by seed",
    "seconds",
)
PAGE = ROOT / "docs" / "acktr-results.md"


def rows(found: Mapping[Job, Trained], learners: Sequence[str], digits: int = 1) -> list[list[str]]:
    """Cells of `COLUMNS`, a row for each learner of each environment; learners without trainings have none.

    Args:
        found: Trainings.
        learners: In the order of the rows.
        digits: Of returns.
    """
    result = []
    for name in dict.fromkeys(job.environment for job in found):
        for learner in learners:
            mine = {job.seed: done for job, done in found.items() if (job.environment, job.learner) == (name, learner)}
            of = [mine[seed] for seed in sorted(mine)]
            if not of:
                continue
            best = [done.best for done in of]
            result.append(
                [
                    name,
                    learner,
                    " ".join(map(str, sorted(mine))),
                    ", ".join(f"{done.final:.{digits}f}" for done in of),
                    f"{interquartile_mean(np.array([done.final for done in of])):.{digits}f}",
                    mean_and_error([done.final for done in of], digits),
                    "not kept" if any(map(math.isnan, best)) else mean_and_error(best, digits),
                    ", ".join("never" if done.first_hit is None else f"{done.first_hit:,}" for done in of),
                    f"{statistics.mean(done.seconds for done in of):.0f}",
                ]
            )
    return result


def table(title: str, columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    """For the terminal."""
    result = Table(title=title, title_justify="left")
    for column in columns:
        result.add_column(column, justify="left" if column in ("environment", "learner", "variant") else "right")
    for row in cells:
        result.add_row(*row)
    return result


def publish(mark: str, command: str, columns: Sequence[str], cells: Iterable[Sequence[str]], made_with: str) -> None:
    """Replace one block of results on the page of ACKTR.

    Args:
        mark: Name of the block.
        command: What made the results.
        columns: Heads of the table.
        cells: Its rows.
        made_with: Versions of packages.
    """
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *cells)]
    text = "\n".join([f"`{command}`; {made_with}.", "", *lines])
    write_block(text, PAGE, (f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"))
