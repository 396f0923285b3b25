"""Peak memory of a training run, each in a fresh process, and whether anything per-example outlives a step.

On the CPU every allocation of torch is recorded by `torch.profiler` from before the network is built, so the peak and what is left are
exact numbers of bytes (scratch memory inside MKL and oneDNN is not torch's and not counted). On CUDA `torch.cuda.max_memory_allocated`
gives the peak.

What a step leaves behind is measured twice, with the whole minibatch and with half of it: state that does not depend on the examples has
the same size.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks._timing import ROOT, Contender

STEPS = 3


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        peak: Largest amount that torch had allocated.
        left: What was still allocated after the last step, with gradients, outputs and data released: weights and optimizer state.
    """

    peak: int
    left: int


def measure_here(build: Callable[[], Contender], device: str) -> Memory:
    """Build a contender and take a few steps in this process; on the CPU, what was allocated before is not counted."""
    if device == "cuda":
        contender = build()
        for _ in range(STEPS):
            contender.step()
        gc.collect()
        return Memory(torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender = build()
        for _ in range(STEPS):
            contender.step()
        gc.collect()
    changes = _allocations(profiler)
    peak = held = 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return Memory(peak, held)


def measure_in_child(arguments: list[str], module: str = "benchmarks.step_cost") -> Memory:
    """`measure_here` in a new process, through the hidden ``--memory-child`` option of a benchmark.

    Args:
        arguments: Command-line arguments that name the contender.
        module: The benchmark.

    Returns:
        Its memory.

    Raises:
        RuntimeError: The child failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def print_as_child(memory: Memory) -> None:
    """What `measure_in_child` reads."""
    print(json.dumps(asdict(memory)))


def _allocations(profiler: torch.profiler.profile) -> list[int]:
    """Signed sizes of all CPU allocations and releases, in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [int(event["args"]["Bytes"]) for event in sorted(memory, key=lambda event: float(event["ts"]))]
