"""The step-cost benchmark runs, prints its tables with positive numbers, and computes its ratios, floor and errors as it says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import _report
from benchmarks._floor import Floor, FloorTimer
from benchmarks._memory import measure_here
from benchmarks._models import LayerShape, Setting, Workload, autoencoder, nature_cnn
from benchmarks._ours import Ours, Row, factor_error, main_rows, subsampled_rows
from benchmarks._peers import SGD, Periods, damped_inverses
from benchmarks._timing import Duration, Samples, interleave
from benchmarks.step_cost import TINY, Guarded, run_workload
from natgrad_apps import Fisher, Subsample

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workload() -> Workload:
    return autoencoder(Setting(), 20, (20, 12, 3, 12, 20))


def run_tiny(name: str, folder: Path, *options: str) -> tuple[str, dict[str, object]]:
    """The benchmark as a user runs it; its output and its JSON."""
    out = folder / "result.json"
    command = [sys.executable, "benchmarks/step_cost.py", "--tiny", "--workload", name, "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    content: dict[str, object] = json.loads(out.read_text())
    return done.stdout, content


def check_numbers(text: str, content: dict[str, object], name: str) -> None:
    workloads = content["workloads"]
    assert isinstance(workloads, dict)
    rows = workloads[name]["rows"]
    timed = [row for row in rows if not row["note"]]
    # The package's own rows always run; a peer may be missing or refuse, and then says why.
    assert {"K-FAC", "EKFAC", "K-FAC, KL trust region"} <= {row["name"] for row in timed}
    assert {row["periods"] for row in timed} == {"1/10", "1/1", "10/100"}
    for row in timed:
        assert row["ratio"] > 0
        assert row["cpu_seconds"] > 0
        assert row["wall_seconds"] > 0
        assert row["skipped_steps"] == 0
        assert row["name"] in text
    floors = [row["floor"] for row in timed if row["floor"] is not None]
    assert len(floors) == 3 * (1 if name == "autoencoder" else 2)
    assert min(floors) > 1.0
    assert "Floor pieces in ms" in text


def test_autoencoder_table(tmp_path: Path) -> None:
    text, content = run_tiny("autoencoder", tmp_path, "--no-memory")
    check_numbers(text, content, "autoencoder")


@pytest.mark.slow
def test_cnn_table_with_memory(tmp_path: Path) -> None:
    text, content = run_tiny("cnn", tmp_path)
    check_numbers(text, content, "cnn")
    memory = content["workloads"]["cnn"]["memory"]  # type: ignore[index]
    assert memory["K-FAC"]["whole_batch"]["peak"] > memory["SGD"]["whole_batch"]["peak"] > 0
    assert "per-example data left" in text


def test_layer_shapes() -> None:
    """The shapes of the Nature network, worked out by hand: 84 -> 20 -> 9 -> 7."""
    shapes = nature_cnn(Setting(), 2).layer_shapes()
    assert shapes == [
        LayerShape(2, 400, 4 * 64 + 1, 32),
        LayerShape(2, 81, 32 * 16 + 1, 64),
        LayerShape(2, 49, 64 * 9 + 1, 32),
        LayerShape(2, 1, 32 * 49 + 1, 512),
        LayerShape(2, 1, 512 + 1, 18),
    ]


def test_floor_formula() -> None:
    floor = Floor(
        sgd=2.0,
        factor_A={"expand": 3.0, "reduce": 1.0},
        factor_G={"expand": 5.0, "reduce": 2.0},
        backward=4.0,
        factorize=10.0,
        precondition=6.0,
    )
    assert floor.ratio(1, 10) == 1 + (3 + 5 + 4 + 1 + 6) / 2
    assert floor.ratio(10, 100, sharing="reduce", monte_carlo=False) == pytest.approx(1 + (0.3 + 0.1 + 6) / 2)


def test_floor_pieces_are_positive(workload: Workload) -> None:
    timer = FloorTimer(workload)
    timer.measure(repeats=1)
    floor = timer.result(sgd=1.0)
    pieces = [floor.backward, floor.factorize, floor.precondition, *floor.factor_A.values(), *floor.factor_G.values()]
    assert min(pieces) > 0


class Clock:
    """A contender that takes a known time, and a clock that knows it."""

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.seconds, self.calls = 0.0, seconds, 0
        self.model = nn.Identity()

    def step(self) -> Tensor:
        self.now += self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        return torch.zeros(())


def test_ratio_is_to_the_neighboring_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD takes 1 s, then 3 s: a rival of 4 s between has the ratio 2; a block of two steps is the mean of its steps."""
    sgd, rival, samples = Clock([1.0, 3.0]), Clock([2.0, 6.0]), Samples()
    monkeypatch.setattr(time, "process_time", lambda: sgd.now + rival.now)
    monkeypatch.setattr(time, "perf_counter", lambda: 2 * (sgd.now + rival.now))
    own = interleave(sgd, [(rival, samples, 2)], rounds=1, baseline_steps=1, device="cpu")
    assert (sgd.calls, rival.calls) == (2, 2)
    assert samples.durations == [Duration(4.0, 8.0)]
    assert samples.cpu_ratios == samples.wall_ratios == [2.0]
    assert own.cpu_ratios == [3.0]


def test_a_failing_peer_ends_alone() -> None:
    class Failing(Clock):
        def step(self) -> Tensor:
            raise RuntimeError("bf16 is beyond me\nsecond line")

    guarded = Guarded(Failing([1.0]), (RuntimeError,))
    assert math.isnan(float(guarded.step()))
    assert guarded.failure == "RuntimeError: bf16 is beyond me"
    with pytest.raises(RuntimeError):
        Guarded(Failing([1.0]), (ValueError,)).step()


def test_missing_package_is_a_row(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "singd.optim.optimizer", None)
    plan = replace(TINY, peers=(0, 99, 0), extras=False)
    # Only that one: the other packages warn while they are imported.
    for name in ("asdl", "backpack", "curvlinops"):
        monkeypatch.setitem(sys.modules, name, None)
    section = run_workload(workload, plan, memory=False, options=[])
    notes = {entry.name: entry.note for entry in section.entries if entry.note}
    assert notes["SINGD, empirical"] == "not installed: pip install singd"
    assert all(note.startswith("not installed: pip install ") for note in notes.values())


def test_factor_error_is_that_of_the_subsample(workload: Workload) -> None:
    """No sub-sample, no error; half of the examples err less than a quarter of them on average."""
    whole = Row("", Periods(1, 10), fisher=Fisher("mc"))
    none = factor_error(workload, whole)
    assert (none.mean_A, none.max_A, none.mean_G, none.max_G) == (0.0, 0.0, 0.0, 0.0)
    half, quarter = (factor_error(workload, replace(whole, fisher=Fisher("mc", subsample=Subsample(n)))) for n in (2, 4))
    assert 0 < half.mean_G < quarter.mean_G
    assert 0 < half.mean_A < quarter.mean_A
    assert all(row.subsampled for row in subsampled_rows(workload))
    assert not any(row.subsampled for row in main_rows(workload))


def test_nothing_per_example_outlives_a_step() -> None:
    """What a step leaves allocated does not depend on the minibatch: weights, momentum, statistics and inverses."""
    left = []
    for batch in (20, 10):
        workload = autoencoder(Setting(), batch, (20, 12, 3, 12, 20))
        memory = measure_here(lambda workload=workload: Ours(workload, main_rows(workload)[0]), "cpu")  # type: ignore[misc]
        assert memory.peak > memory.left > 0
        left.append(memory.left)
    assert left[0] == left[1]


def test_memory_counts_what_is_kept(workload: Workload) -> None:
    """SGD with momentum keeps weights, gradients and momentum: three times the parameters, and the integer seeds of nothing else."""
    parameters = sum(p.numel() for p in workload.model().parameters()) * 4
    memory = measure_here(lambda: SGD(workload), "cpu")
    assert 3 * parameters <= memory.left < 3 * parameters + 2048


def test_damped_inverses() -> None:
    """With ``A = 4 I`` and ``G = I``, ``pi = 2``: the shifts are ``2 sqrt(0.25) = 1`` and ``sqrt(0.25) / 2``."""
    G, A = damped_inverses(torch.eye(3), 4 * torch.eye(2), 0.25)
    torch.testing.assert_close(G, torch.eye(3) / 1.25)
    torch.testing.assert_close(A, torch.eye(2) / 5.0)


def test_document_block_is_replaced(workload: Workload, tmp_path: Path) -> None:
    section = run_workload(workload, replace(TINY, peers=(0, 0, 0), extras=False), memory=False, options=[])
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{_report.BEGIN}\nold\n{_report.END}\nafter\n")
    for _ in range(2):
        _report.write_document([section], {"torch": "x"}, "python benchmarks/step_cost.py --tiny", path)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| K-FAC |") == 3
    path.write_text("no block")
    with pytest.raises(ValueError, match="has no block"):
        _report.write_document([section], {}, "", path)
