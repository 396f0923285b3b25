"""Cost of a natural-gradient step as a ratio to SGD, beside its flop floor and beside other K-FAC packages, in one run.

    python benchmarks/step_cost.py            # main rows and two peers, under four minutes on two cores
    python benchmarks/step_cost.py --full     # everything; --write-docs puts the tables into docs/performance.md

Two workloads: an autoencoder (784-1000-500-250-30-250-500-1000-784, minibatch 500, mean squared error) and the Nature CNN (4x84x84,
convolutions of 32, 64 and 32 channels, 512 hidden units, 18 classes, minibatch 256, cross-entropy). A step is forward, statistics,
backward and update. ``F/I`` are the steps between statistics and between inversions.

How it is timed: contenders take turns in one process, each between two blocks of SGD with momentum; a block of a contender is a whole
number of its periods, so inversions are amortised as in training. The ratio of a block is its time over the mean of the SGD blocks before
and after; the table has the median and the range over blocks. Time is process CPU time (all threads), elapsed time on CUDA; elapsed time
has its own column. The floor is explained in `_floor.py`, peers are in `_peers.py`, memory is explained in `_memory.py`.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import _report
from benchmarks._floor import FloorTimer
from benchmarks._memory import Memory, measure_here, measure_in_child, print_as_child
from benchmarks._models import Setting, Workload, autoencoder, nature_cnn
from benchmarks._ours import Ours, Row, extra_rows, factor_error, main_rows, subsampled_rows
from benchmarks._peers import SGD, Periods, peers
from benchmarks._report import Entry, Section
from benchmarks._timing import Contender, Samples, environment, interleave

PACKAGES = ("torch", "natgrad-apps", "asdfghjkl", "backpack-for-pytorch", "curvlinops-for-pytorch", "singd")
THEIR_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a package may raise when a configuration is beyond it; the table says so."""
CHILD_ROWS = ("K-FAC", "K-FAC reduce", "EKFAC")
MIN_BLOCK = 3


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Blocks of each row at 1/10 and 1/1.
        long_rounds: Blocks of each row at 10/100, of 100 steps.
        peers: Peers that take part at 1/10, 1/1 and 10/100, in the order of `_peers.peers`.
        extras: Whether the rest of the family takes part.
        baseline_steps: Steps of one SGD block.
        memory: Rows whose memory is measured, beside SGD.
    """

    rounds: int
    long_rounds: int
    peers: tuple[int, int, int]
    extras: bool
    baseline_steps: int
    memory: tuple[str, ...]


PERIODS = (Periods(1, 10), Periods(1, 1), Periods(10, 100))
QUICK = Plan(rounds=2, long_rounds=1, peers=(2, 1, 0), extras=False, baseline_steps=4, memory=("K-FAC",))
FULL = Plan(rounds=7, long_rounds=2, peers=(99, 99, 99), extras=True, baseline_steps=8, memory=CHILD_ROWS)
TINY = Plan(rounds=1, long_rounds=1, peers=(99, 99, 99), extras=True, baseline_steps=1, memory=("K-FAC",))


class Guarded:
    """A contender whose failure ends itself, not the run.

    Args:
        contender: What is guarded.
        tolerated: Errors that end it; `failure` then says which one.
    """

    def __init__(self, contender: Contender, tolerated: tuple[type[Exception], ...]) -> None:
        self._contender, self._tolerated = contender, tolerated
        self.failure = ""

    @property
    def model(self) -> nn.Module:
        """The network that it trains."""
        return self._contender.model

    def step(self) -> Tensor:
        """One step; none after a failure."""
        if not self.failure:
            try:
                return self._contender.step()
            except self._tolerated as error:
                self.failure = _describe(error)
        return torch.tensor(math.nan)


def workloads(setting: Setting, names: Sequence[str], *, tiny: bool, half: bool = False) -> list[Workload]:
    """The workloads named; `half` halves the minibatch."""
    sizes = {"autoencoder": 20, "cnn": 16} if tiny else {"autoencoder": 500, "cnn": 256}
    made = []
    for name in names:
        batch = sizes[name] // (2 if half else 1)
        if name == "autoencoder":
            made.append(autoencoder(setting, batch, (20, 12, 3, 12, 20)) if tiny else autoencoder(setting, batch))
        else:
            made.append(nature_cnn(setting, batch, 36 if tiny else 84))
    return made


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"


def _own_entries(workload: Workload, plan: Plan) -> list[tuple[Entry, Ours, Row]]:
    rows = main_rows(workload) + subsampled_rows(workload) + (extra_rows(workload) if plan.extras else [])
    return [(Entry(row.name, str(row.periods)), Ours(workload, row), row) for row in rows]


def _peer_entries(workload: Workload, plan: Plan) -> list[tuple[Entry, Guarded | None, Periods]]:
    """Peers in each configuration; without a contender where the package is missing or refuses."""
    made: list[tuple[Entry, Guarded | None, Periods]] = []
    for periods, count in zip(PERIODS, plan.peers, strict=True):
        for peer in peers()[:count]:
            if peer.supports(workload, periods):
                entry, contender = Entry(peer.name, str(periods)), None
                try:
                    contender = Guarded(peer.make(workload, periods), THEIR_ERRORS)
                except ModuleNotFoundError:
                    entry.note = f"not installed: {peer.install}"
                except THEIR_ERRORS as error:
                    entry.note = _describe(error)
                made.append((entry, contender, periods))
    return made


def run_workload(workload: Workload, plan: Plan, *, memory: bool, options: list[str]) -> Section:
    """Time every row of one workload, its floor and its memory."""
    device = workload.setting.device
    baseline, timer = SGD(workload), FloorTimer(workload)
    start = workload.mean_loss(baseline.model)
    own = _own_entries(workload, plan)
    theirs = _peer_entries(workload, plan)
    rivals: dict[bool, list[tuple[Contender, Samples, int]]] = {False: [], True: []}
    for entry, contender, periods in [(e, c, row.periods) for e, c, row in own] + theirs:
        if contender is not None:
            # A first step allocates state; a window of whole periods holds the same work wherever it starts.
            contender.step()
            rivals[periods.inverse == 100].append((contender, entry.samples, max(periods.inverse, MIN_BLOCK)))
    for _ in range(2):
        baseline.step()
    sgd = Samples()
    for is_long, rounds in ((False, plan.rounds), (True, plan.long_rounds)):
        for _ in range(rounds):
            timer.measure()
            part = interleave(baseline, rivals[is_long], rounds=1, baseline_steps=plan.baseline_steps, device=device)
            sgd.durations += part.durations
            sgd.cpu_ratios += part.cpu_ratios
            sgd.wall_ratios += part.wall_ratios
    floor = timer.result(statistics.median(d.cpu for d in sgd.durations))
    for entry, ours, row in own:
        entry.losses, entry.skipped = (start, workload.mean_loss(ours.model)), ours.skipped
        if row.has_floor:
            entry.floor = floor.ratio(row.periods.statistics, row.periods.inverse, sharing=row.fisher.sharing)
        if row.subsampled:
            entry.error = factor_error(workload, row)
    for entry, peer, _ in theirs:
        if peer is not None:
            entry.losses, entry.note = (start, workload.mean_loss(peer.model)), peer.failure
    order = [str(periods) for periods in PERIODS]
    entries = sorted([e for e, _, _ in own] + [e for e, _, _ in theirs], key=lambda e: order.index(e.periods))
    used = measure_memory(workload, plan.memory, options) if memory else {}
    return Section(workload.name, sgd, floor, entries, used)


def measure_memory(workload: Workload, rows: Sequence[str], options: list[str]) -> dict[str, tuple[Memory, Memory]]:
    """Memory of SGD and of some rows, with a whole and with half a minibatch, each in its own process, two at a time."""
    names = ["SGD", *(name for name in rows if workload.name == "cnn" or name != "K-FAC reduce")]
    commands = [[*options, "--workload", workload.name, "--memory-child", name, *half] for name in names for half in ([], ["--half-batch"])]
    with ThreadPoolExecutor(max_workers=2) as pool:
        measured = list(pool.map(measure_in_child, commands))
    return dict(zip(names, zip(measured[::2], measured[1::2], strict=True), strict=True))


def memory_child(workload: Workload, name: str) -> None:
    """Print the memory of one contender; runs in a process of its own."""
    rows = {row.name: row for row in (*extra_rows(workload), *reversed(main_rows(workload)))}
    print_as_child(measure_here(lambda: SGD(workload) if name == "SGD" else Ours(workload, rows[name]), workload.setting.device))


def _command(given: Sequence[str]) -> str:
    """The command that repeats this run, without the name of a file that only its author has."""
    kept = [word for i, word in enumerate(given) if not word.startswith("--out") and (i == 0 or given[i - 1] != "--out")]
    return " ".join(["python benchmarks/step_cost.py", shlex.join(kept)]).rstrip()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="plan", action="store_const", const=QUICK, default=QUICK, help="the default")
    size.add_argument("--full", dest="plan", action="store_const", const=FULL, help="all peers, the whole family, more blocks")
    size.add_argument(
        "--tiny", dest="plan", action="store_const", const=TINY, help="small networks, one block each: checks that everything runs"
    )
    made.add_argument("--workload", choices=("autoencoder", "cnn"), help="only this one")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="bf16: forward and backward passes under autocast")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--no-memory", action="store_true", help="leave out the memory table")
    made.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    made.add_argument("--write-docs", action="store_true", help="replace the results block of docs/performance.md")
    made.add_argument("--memory-child", choices=("SGD", *CHILD_ROWS), help=argparse.SUPPRESS)
    made.add_argument("--half-batch", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0; 1 if a row of the package itself skipped steps (its time means nothing then); 2 for a device that is not there.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA device here; use --device cpu", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")  # peers use deprecated hooks
    setting = Setting(args.device, args.dtype, args.threads)
    names = [args.workload] if args.workload else ["autoencoder", "cnn"]
    tiny = args.plan is TINY
    made = workloads(setting, names, tiny=tiny, half=args.half_batch)
    if args.memory_child:
        memory_child(made[0], args.memory_child)
        return 0
    options = ["--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads), *(["--tiny"] if tiny else [])]
    sections = [run_workload(w, args.plan, memory=not args.no_memory, options=options) for w in made]
    setup = {**environment(PACKAGES), **asdict(setting)}
    console = Console(width=None if sys.stdout.isatty() else 160)
    _report.show(sections, console)
    console.print(", ".join(f"{key} {value}" for key, value in setup.items()), highlight=False)
    if args.out:
        _report.write_json(args.out, sections, setup)
    if args.write_docs:
        _report.write_document(sections, setup, _command(given))
    skipped = [entry.name for section in sections for entry in section.entries if entry.skipped]
    if skipped:
        print(f"steps were skipped by {', '.join(skipped)}: these times are not times of training steps", file=sys.stderr)
    return 1 if skipped else 0


if __name__ == "__main__":
    raise SystemExit(main())
