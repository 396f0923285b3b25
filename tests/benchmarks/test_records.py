"""Records of trainings: kept, found again, and what becomes of the processes that make them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks._records import Job, Trained, load, run_missing, versions
from benchmarks._timing import ROOT

JOB = Job("Hopper", "momentum_inside", 101)


def _trained(job: Job) -> Trained:
    """Stands for a training."""
    return Trained(float(job.seed), 2.0, None, [(10, 3.0)], 10, 0.5)


def test_finished_trainings_are_found_again_and_not_repeated(tmp_path: Path) -> None:
    other = dataclasses.replace(JOB, seed=102)
    (tmp_path / other.file).write_text(
        json.dumps({**dataclasses.asdict(other), **dataclasses.asdict(_trained(other)), "final": -5.0, "best": None})
    )
    run_missing([JOB, other], _trained, tmp_path, 1, ["torch"], Console(quiet=True))
    found = load(tmp_path)
    assert set(found) == {JOB, other}
    assert (found[JOB].final, found[JOB].curve, found[JOB].first_hit) == (101.0, [(10, 3.0)], None)
    assert found[other].final == -5.0
    assert math.isnan(found[other].best)
    assert {"torch", "commit", "machine"} <= set(found[JOB].made_with)


def test_versions_are_those_of_the_trainings() -> None:
    def made(**with_: str) -> Trained:
        return dataclasses.replace(_trained(JOB), made_with=with_)

    text = versions([made(torch="2.13", commit="a"), made(torch="2.14", commit="a"), made(note="by hand")], ["torch", "numpy"])
    assert text == "torch 2.13, 2.14; commit a"


_KILLED = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from benchmarks._records import Job, run_missing

def work(job):
    Path(sys.argv[1], "worker").write_text(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    run_missing([Job("A", "B", 1)], work, Path(sys.argv[1]), 1, [], Console(quiet=True))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_workers_end_with_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_KILLED)
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}) as benchmark:
        worker = tmp_path / "worker"
        assert _comes_true(lambda: worker.exists() and bool(worker.read_text()))
        benchmark.kill()
    assert _comes_true(lambda: not _alive(int(worker.read_text())))


def _comes_true(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return true


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    # Nobody may have waited for it yet.
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
