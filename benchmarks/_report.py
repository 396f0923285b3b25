"""What `step_cost.py` prints and writes: a table, a JSON file, and the results block of ``docs/performance.md``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._floor import Floor
from benchmarks._memory import Memory
from benchmarks._ours import FactorError
from benchmarks._timing import ROOT, Samples

DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results of step_cost.py: begin -->", "<!-- results of step_cost.py: end -->"
HEADERS = ("optimizer", "F/I", "ratio to SGD", "spread", "floor", "over floor", "ms", "wall ratio", "loss")


@dataclass
class Entry:
    """One row.

    Attributes:
        name: Label.
        periods: ``F/I``.
        samples: Its timings.
        floor: The flop floor of this configuration, if it has one.
        losses: Training loss over all minibatches before the first and after the last step; rows take different numbers of steps.
        error: Error of sub-sampled factors.
        skipped: Steps that the optimizer refused because a number was not finite.
        note: Why there are no numbers.
    """

    name: str
    periods: str
    samples: Samples = field(default_factory=Samples)
    floor: float | None = None
    losses: tuple[float, float] | None = None
    error: FactorError | None = None
    skipped: int = 0
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median ratio of CPU time (elapsed time on CUDA) to SGD."""
        return statistics.median(self.samples.cpu_ratios)

    def cells(self) -> list[str]:
        """The row as text."""
        if self.note or not self.samples.durations:
            return [self.name, self.periods, "-", "-", "-", "-", "-", "-", self.note]
        ratios = self.samples.cpu_ratios
        floor = ("-", "-") if self.floor is None else (f"{self.floor:.2f}", f"{self.ratio / self.floor:.2f}")
        wall = statistics.median(self.samples.wall_ratios)
        loss = "" if self.losses is None else f"{self.losses[0]:.4g} -> {self.losses[1]:.4g}"
        loss += " (no progress)" * self.stuck + f" ({self.skipped} steps skipped)" * (self.skipped > 0)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        return [self.name, self.periods, f"{self.ratio:.2f}", spread, *floor, f"{self.samples.cpu_ms:.0f}", f"{wall:.2f}", loss]

    @property
    def stuck(self) -> bool:
        """Whether the loss did not go down (a NaN counts)."""
        return self.losses is not None and not self.losses[1] < self.losses[0]


@dataclass
class Section:
    """Everything about one workload."""

    workload: str
    sgd: Samples
    floor: Floor
    entries: list[Entry]
    memory: dict[str, tuple[Memory, Memory]]

    def title(self) -> str:
        """Heading with the baseline."""
        noise = self.sgd.cpu_ratios
        return (
            f"{self.workload}: SGD {self.sgd.cpu_ms:.1f} ms a step; SGD block over SGD block before: "
            f"median {statistics.median(noise):.2f}, {min(noise):.2f}-{max(noise):.2f}"
        )

    def floor_line(self) -> str:
        """The pieces of the floor in milliseconds."""
        f = self.floor
        pieces = {
            "SGD": f.sgd,
            "A expand": f.factor_A["expand"],
            "A reduce": f.factor_A["reduce"],
            "G expand": f.factor_G["expand"],
            "G reduce": f.factor_G["reduce"],
            "backward to outputs": f.backward,
            "Cholesky inverses": f.factorize,
            "preconditioning": f.precondition,
        }
        return "Floor pieces in ms: " + ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in pieces.items())

    def error_lines(self) -> list[str]:
        """One line for each sub-sampled row."""
        return [
            f"{e.name}: relative Frobenius error of A {e.error.mean_A:.3f} (largest {e.error.max_A:.3f}), "
            f"of G {e.error.mean_G:.3f} (largest {e.error.max_G:.3f})"
            for e in self.entries
            if e.error is not None
        ]

    def memory_rows(self) -> list[list[str]]:
        """Peak over SGD, and what the step leaves with a whole and with half a minibatch."""
        rows = []
        base = self.memory["SGD"][0] if self.memory else None
        for name, (whole, half) in self.memory.items():
            assert base is not None
            kept = "nothing" if whole.left == half.left else f"{whole.left - half.left:+d} bytes"
            rows.append([name, _mib(whole.peak), f"{(whole.peak - base.peak) / 2**20:+.1f}", _mib(whole.left), kept])
        return rows


MEMORY_HEADERS = ("optimizer", "peak MiB", "over SGD", "weights and state MiB", "per-example data left")


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"


def show(sections: Sequence[Section], console: Console) -> None:
    """Print the tables."""
    for section in sections:
        console.print(_table(section.title(), HEADERS, [e.cells() for e in section.entries]))
        console.print(section.floor_line(), highlight=False)
        for line in section.error_lines():
            console.print(line, highlight=False)
        if section.memory:
            console.print(_table(f"{section.workload}: memory", MEMORY_HEADERS, section.memory_rows()))


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 or header == "loss" else "right", no_wrap=i > 0 and header != "loss")
    for row in rows:
        table.add_row(*row)
    return table


def write_json(path: Path, sections: Sequence[Section], setup: dict[str, Any]) -> None:
    """Every number of the run, in seconds and bytes."""
    content = {
        "setup": setup,
        "workloads": {
            s.workload: {
                "sgd": {"cpu_seconds": s.sgd.cpu_ms / 1e3, "wall_seconds": s.sgd.wall_ms / 1e3, "noise": s.sgd.cpu_ratios},
                "floor_seconds": s.floor.as_dict(),
                "rows": [_row(e) for e in s.entries],
                "memory": {name: {"whole_batch": asdict(a), "half_batch": asdict(b)} for name, (a, b) in s.memory.items()},
            }
            for s in sections
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "periods": entry.periods, "note": entry.note}
    if entry.samples.durations and not entry.note:
        row |= {
            "ratio": entry.ratio,
            "ratios": entry.samples.cpu_ratios,
            "wall_ratios": entry.samples.wall_ratios,
            "cpu_seconds": entry.samples.cpu_ms / 1e3,
            "wall_seconds": entry.samples.wall_ms / 1e3,
            "floor": entry.floor,
            "losses": entry.losses,
            "skipped_steps": entry.skipped,
            "factor_error": None if entry.error is None else asdict(entry.error),
        }
    return row


def write_document(sections: Sequence[Section], setup: dict[str, Any], command: str, path: Path = DOCUMENT) -> None:
    """Replace the results block of the document.

    Raises:
        ValueError: The document has no such block.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no block between '{BEGIN}' and '{END}'; put the two lines where the results belong")
    lines = [BEGIN, "", "```bash", command, "```", "", "; ".join(f"{key} {value}" for key, value in setup.items()), ""]
    for section in sections:
        lines += [
            f"### {section.title()}",
            "",
            *_markdown(HEADERS, [e.cells() for e in section.entries]),
            "",
            section.floor_line() + ".",
            "",
        ]
        errors = section.error_lines()
        if errors:
            lines += ["Sub-sampled statistics, against the factors of the whole minibatch with the same sampled targets:", ""]
            lines += [*(f"- {line}" for line in errors), ""]
        if section.memory:
            lines += [*_markdown(MEMORY_HEADERS, section.memory_rows()), ""]
    before, rest = text.split(BEGIN, 1)
    path.write_text(before + "\n".join([*lines, END]) + rest.split(END, 1)[1])


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    aligned = ["---" if i == 0 else "---:" for i in range(len(headers))]
    return [f"| {' | '.join(cells)} |" for cells in (headers, aligned, *rows)]
