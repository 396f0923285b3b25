"""Interleaved timing: contenders take turns, each between two blocks of SGD, so that slow drifts of the machine cancel in the ratios."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]


class Contender(Protocol):
    """Something that trains: `step` does one whole training step (forward, statistics, backward, update) and returns the loss before it."""

    @property
    def model(self) -> nn.Module:
        """The network that it trains."""

    def step(self) -> Tensor:
        """One training step on the next minibatch."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one step.

    Attributes:
        cpu: Process CPU time, over all threads; on CUDA the same as `wall`, which is what counts there.
        wall: Elapsed time.
    """

    cpu: float
    wall: float

    def over(self, before: Duration, after: Duration) -> Duration:
        """Both times as ratios to the mean of the baseline's before and after it."""
        return Duration(2.0 * self.cpu / (before.cpu + after.cpu), 2.0 * self.wall / (before.wall + after.wall))


@dataclass
class Samples:
    """What the blocks of one contender gave, one entry a block.

    Attributes:
        durations: Time of one step.
        cpu_ratios: CPU time over that of the SGD blocks before and after.
        wall_ratios: The same for elapsed time.
    """

    durations: list[Duration] = field(default_factory=list)
    cpu_ratios: list[float] = field(default_factory=list)
    wall_ratios: list[float] = field(default_factory=list)

    @property
    def cpu_ms(self) -> float:
        """Median CPU milliseconds of a step."""
        return 1e3 * statistics.median(d.cpu for d in self.durations)

    @property
    def wall_ms(self) -> float:
        """Median elapsed milliseconds of a step."""
        return 1e3 * statistics.median(d.wall for d in self.durations)


def stopwatch(action: Callable[[], object], repeats: int, device: str) -> Duration:
    """Time of one call of `action`, the mean over `repeats` calls."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        action()
    if cuda:
        torch.cuda.synchronize()
    wall = (time.perf_counter() - wall) / repeats
    return Duration(wall if cuda else (time.process_time() - cpu) / repeats, wall)


def interleave(
    baseline: Contender, rivals: Sequence[tuple[Contender, Samples, int]], *, rounds: int, baseline_steps: int, device: str
) -> Samples:
    """Time the rivals in turn, `rounds` times: SGD, first, SGD, second, SGD, ...

    Args:
        baseline: SGD.
        rivals: Contender, where its samples go, and the steps of one block: a multiple of its period, so that every block holds the same
            number of statistics and inversions wherever it starts.
        rounds: Blocks of each rival.
        baseline_steps: Steps of one SGD block.
        device: Where they run.

    Returns:
        The samples of SGD itself; its ratios are those of each block to the one before, the noise of the method.
    """
    own = Samples()

    def run_baseline() -> Duration:
        duration = stopwatch(baseline.step, baseline_steps, device)
        if own.durations:
            own.cpu_ratios.append(duration.cpu / own.durations[-1].cpu)
            own.wall_ratios.append(duration.wall / own.durations[-1].wall)
        own.durations.append(duration)
        return duration

    before = run_baseline()
    for _ in range(rounds):
        for rival, samples, steps in rivals:
            duration = stopwatch(rival.step, steps, device)
            after = run_baseline()
            samples.durations.append(duration)
            ratio = duration.over(before, after)
            samples.cpu_ratios.append(ratio.cpu)
            samples.wall_ratios.append(ratio.wall)
            before = after
    return own


def median_time(action: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median CPU seconds (elapsed on CUDA) of one call, after a first one that does not count."""
    action()
    return statistics.median(stopwatch(action, 1, device).cpu for _ in range(repeats))


def commit() -> str:
    """The commit of this working tree, marked if files differ from it; ``unknown`` outside git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(packages: Iterable[str]) -> dict[str, str]:
    """What a reader must know of the machine and of the installed versions."""
    versions = {"python": platform.python_version(), "machine": _processor(), "commit": commit()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or platform.machine()
