"""Trainings of agents as files, one each: a comparison that takes many hours is made in pieces, and says what each was made with."""

from __future__ import annotations

import concurrent.futures
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks._timing import environment
from natgrad_apps.runner import atomic


@dataclass(frozen=True)
class Trained:
    """What one training gave.

    Attributes:
        final: Mean return of the last policy, deterministic episodes.
        best: The same of the policy that did best in the periodic evaluations; other first states than those. NaN where it was not kept.
        first_hit: Environment steps at the first periodic evaluation that reached the target; None if none did.
        curve: Steps and mean returns of the periodic evaluations.
        steps: Environment steps.
        seconds: Of training and periodic evaluations.
        made_with: Machine, commit and versions of packages.
    """

    final: float
    best: float
    first_hit: int | None
    curve: list[tuple[int, float]]
    steps: int
    seconds: float
    made_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        environment: Without its version.
        learner: Name of what is compared.
        seed: Of everything random.
    """

    environment: str
    learner: str
    seed: int

    @property
    def file(self) -> str:
        """Where its numbers are kept."""
        return f"{self.environment}_{self.learner}_{self.seed}.json"


def run_missing(
    jobs: Sequence[Job], run: Callable[[Job], Trained], out: Path, workers: int, packages: Iterable[str], console: Console
) -> None:
    """Do the trainings whose numbers are not in a folder yet, and keep them there.

    Args:
        jobs: In the order in which they are begun.
        run: Does one of them; picklable.
        out: The folder.
        workers: Processes, one thread each.
        packages: Whose versions are kept with the numbers.
        console: Shows progress.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not (out / job.file).exists()]
    if not missing:
        return
    made_with = environment(packages)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = {pool.submit(run, job): job for job in missing}
        for future in track(concurrent.futures.as_completed(futures), "trainings", total=len(missing), console=console):
            job, done = futures[future], future.result()
            # On one line: a curve would have four for each of its points.
            atomic.write_text(out / job.file, json.dumps({**asdict(job), **asdict(done), "made_with": made_with}) + "\n")
            console.print(f"{job.environment} {job.learner} seed {job.seed}: {done.final:.1f}")


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone: killed, it cannot tell its workers, which would train on for hours."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def load(out: Path) -> dict[Job, Trained]:
    """The finished trainings of a folder."""
    found = {}
    for file in sorted(out.glob("*_*_*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        job = Job(*(record.pop(key) for key in ("environment", "learner", "seed")))
        best = math.nan if record["best"] is None else record["best"]
        found[job] = Trained(**{**record, "best": best, "curve": [(int(a), float(b)) for a, b in record["curve"]]})
    return found


def versions(found: Iterable[Trained], packages: Sequence[str]) -> str:
    """Packages and commits that trainings were made with, as text; several versions of one are all named.

    Args:
        found: Trainings.
        packages: In the order of the text.
    """
    made = [done.made_with for done in found]

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(each[key] for each in made if key in each))

    return "; ".join(f"{key} {values(key)}" for key in (*packages, "commit") if values(key))
