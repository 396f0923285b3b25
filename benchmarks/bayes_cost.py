"""Cost of a step of variational inference, as a ratio to the optimizer that it extends, in one run.

    python benchmarks/bayes_cost.py             # both networks, two minutes on a free core
    python benchmarks/bayes_cost.py --full      # more blocks, and peak memory

Noisy K-FAC and noisy EKFAC are compared with the core's K-FAC and EKFAC with the same periods (F/I: steps between statistics and between
factorizations), the others with `torch.optim.Adam` in its default form. Networks: 784-400-400-10 ("mlp"), and two strided convolutions with
two linear layers ("cnn"), on minibatches of 128 digits. Every step of a posterior draws its weights, reports its ELBO and updates mean,
covariance and momentum.

How it is timed: contenders take turns in one process, each between two blocks of its baseline; a block is a whole number of periods, so
factorizations are amortised as in training. A ratio is the time of a block over the mean of the baseline's before and after it; the table
has the median and the range over blocks. Time is process CPU time, elapsed time on CUDA. The row "Adam and a draw ..." is a lower bound for
every method that draws each weight: Adam, and that many normal numbers of torch's generator. Peak memory is that of torch's allocations in
a process of its own, from before the network is built.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import torch

from benchmarks._bayes_contenders import BASELINES, Row, rows, workload
from benchmarks._memory import measure_here, measure_in_child, print_as_child
from benchmarks._models import Setting, Workload
from benchmarks._pages import write_block, write_json
from benchmarks._timing import ROOT, Samples, environment, interleave

DOCUMENT = ROOT / "docs" / "bayes-methods.md"
BEGIN, END = "<!-- results of bayes_cost.py: begin -->", "<!-- results of bayes_cost.py: end -->"
HEADER = "| network | step | over | ratio | range | bar | ms | peak memory, MiB | loss |\n|---|---|---|---|---|---|---|---|---|"
BATCH_SIZE = 128
MEMORY_ROWS = ("Adam", "Vadam", "SLANG, L = 8, period 10, subsample 4", "K-FAC 1/10", "noisy K-FAC 1/10", "EKFAC 1/10", "noisy EKFAC 1/10")
Record = dict[str, Any]


def time_workload(made: Workload, chosen: Sequence[Row], rounds: int) -> list[Record]:
    """Time every row between blocks of its baseline.

    Args:
        made: The workload.
        chosen: Rows.
        rounds: Blocks of each row; a third of it for rows of long periods.
    """
    records = []
    for key, base in BASELINES.items():
        mine = [row for row in chosen if row.baseline == key and made.name in row.workloads]
        if not mine:
            continue
        baseline = base.make(made)
        contenders = [(row.make(made), Samples(), row.period) for row in mine]
        first = made.mean_loss(baseline.model)
        for contender in [baseline, *(c for c, _, _ in contenders)]:
            for _ in range(base.period + 1):  # allocate state, and leave the steps in which averages begin behind
                contender.step()
        blocks = max(rounds // 3, 1) if base.period > BASELINES["Adam"].period else rounds
        own = interleave(baseline, contenders, rounds=blocks, baseline_steps=base.period, device=made.setting.device)
        records.append(_record(made, base, own, first, made.mean_loss(baseline.model)) | {"ratio": 1.0, "bar": None})
        for row, (contender, samples, _) in zip(mine, contenders, strict=True):
            records.append(_record(made, row, samples, first, made.mean_loss(contender.model)))
    return records


def _record(made: Workload, row: Row, samples: Samples, first: float, last: float) -> Record:
    ratios = samples.cpu_ratios
    return {
        "network": made.name,
        "step": row.name,
        "over": row.baseline if row.name not in {base.name for base in BASELINES.values()} else "",
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "bar": row.bar,
        "ms": samples.cpu_ms,
        "loss": (first, last),
    }


def table(records: Sequence[Record]) -> str:
    """Markdown."""
    lines = [HEADER]
    for r in records:
        memory = f"{r['memory'] / 2**20:.0f}" if r.get("memory") else ""
        bar = "" if r["bar"] is None else f"{r['bar']:.1f} {'met' if r['ratio'] <= r['bar'] else 'missed'}"
        spread = f"{r['low']:.2f}-{r['high']:.2f}" if r["over"] else ""
        loss = f"{r['loss'][0]:.2f} -> {r['loss'][1]:.3f}"
        cells = [r["network"], r["step"], r["over"], f"{r['ratio']:.2f}", spread, bar, f"{r['ms']:.1f}", memory, loss]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="15 blocks, and peak memory")
    parser.add_argument("--memory", action="store_true", help="peak memory of the main rows")
    parser.add_argument("--rounds", type=int, help="blocks of each row (default: 5, or 15 with --full)")
    parser.add_argument("--networks", nargs="*", default=["mlp", "cnn"], help="mlp, cnn, both (default) or none")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in rows()], help="only these")
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/bayes-methods.md")
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    options = _arguments(given)
    torch.set_num_threads(options.threads)
    setting = Setting(options.device, "float32", options.threads)
    made = [workload(name, setting, options.batch_size) for name in options.networks]
    if options.memory_child:
        every = {row.name: row for row in (*rows(), *BASELINES.values())}
        print_as_child(measure_here(lambda: every[options.memory_child].make(made[0]), options.device))
        return
    chosen = [row for row in rows() if not options.rows or row.name in options.rows]
    rounds = options.rounds or (15 if options.full else 5)
    records = [record for one in made for record in time_workload(one, chosen, rounds)]
    shared = ["--device", options.device, "--threads", str(options.threads), "--batch_size", str(options.batch_size)]
    if options.full or options.memory:
        for record in (r for r in records if r["step"] in MEMORY_ROWS):
            command = [*shared, "--networks", record["network"], "--memory-child", record["step"]]
            record["memory"] = measure_in_child(command, "benchmarks.bayes_cost").peak
    setup = {**environment(("torch", "numpy", "natgrad-apps")), **asdict(setting), "batch": options.batch_size, "seed": 0}
    described = ", ".join(f"{key} {value}" for key, value in setup.items())
    kept = [w for i, w in enumerate(given) if w not in ("--out", "--write") and (i == 0 or given[i - 1] != "--out")]
    text = f"command: `{' '.join(['python benchmarks/bayes_cost.py', shlex.join(kept)]).rstrip()}`   {described}\n\n{table(records)}"
    print(text)
    write_json(setup, records, options.out)
    if options.write:
        write_block(text, document=DOCUMENT, marks=(BEGIN, END))


if __name__ == "__main__":
    main()
