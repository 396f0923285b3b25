"""Mean-field methods on UCI regression beside Bayes by backprop: time to equal ELBO, ELBO, and test errors, in one run.

    python benchmarks/bayes_mean_field.py                       # boston, concrete, yacht, split 0: three minutes on a free core
    python benchmarks/bayes_mean_field.py --full --out FILE     # splits 0-4; goes on from FILE
    python benchmarks/bayes_mean_field.py --tune                # the learning rates, on split 15

One model for all: a hidden layer of 50 ReLU units, standard normal prior, noise of standard deviation 0.3 on standardized targets (fixed,
so that every method has the same ELBO), batches of 32, two weight samples a step, the same number of steps, learning rates that fall to 0
along a cosine; noisy Adam's steps are bounded by a KL divergence, as in the runner. Bayes by backprop is Pyro's: `AutoDiagonalNormal` under
`Trace_ELBO` and `AutoNormal` under `TraceMeanField_ELBO` (KL in closed form), Adam, two particles. Every method begins at the same weights,
with a standard deviation of 0.05. Learning rates (`RATES`, from `GRIDS`), VOGN's decay and noisy Adam's bound were chosen by the ELBO of
the training rows of splits 15 and 16.

The negative ELBO is measured outside the clock, at twenty points of the run: the closed-form KL plus the mean over 50 weight samples of the
negative log-likelihood of all training rows. "Time to equal ELBO" is the process CPU time until a method is at the negative ELBO (within
0.5%) that the better of the two autoguides ends at.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import torch

from benchmarks._mean_field import NOISE_STD, Backprop, Data, Ours, build
from benchmarks._pages import mean_and_error
from benchmarks._timing import ROOT, environment
from natgrad_apps.runner import atomic

DOCUMENT = ROOT / "docs" / "bayes-methods.md"
BEGIN, END = "<!-- results of bayes_mean_field.py: begin -->", "<!-- results of bayes_mean_field.py: end -->"
SETS = ("boston", "concrete", "yacht")
BATCH, POINTS, ELBO_SAMPLES, TEST_SAMPLES = 32, 20, 50, 100
RATES: dict[str, float] = {"vadam": 0.1, "vogn": 0.1, "noisy_adam": 0.1, "pyro_diagonal": 0.03, "pyro_mean_field": 0.03}
GRIDS: dict[str, tuple[float, ...]] = {
    "vadam": (0.003, 0.01, 0.03, 0.1),
    "vogn": (0.03, 0.1, 0.3),
    "noisy_adam": (0.03, 0.1, 0.3),
    "pyro_diagonal": (0.003, 0.01, 0.03, 0.1),
    "pyro_mean_field": (0.003, 0.01, 0.03),
}
NAMES = {
    "vadam": "Vadam",
    "vogn": "VOGN",
    "noisy_adam": "noisy Adam",
    "pyro_diagonal": "Pyro AutoDiagonalNormal, Trace_ELBO",
    "pyro_mean_field": "Pyro AutoNormal, TraceMeanField_ELBO",
}
GUIDES = ("pyro_diagonal", "pyro_mean_field")
HEADER = """| set | method | splits | -ELBO, nats | RMSE | test log-likelihood | CPU s | CPU s to equal ELBO |
|---|---|---|---|---|---|---|---|"""
Result = dict[str, Any]


def negative_elbo(contender: Ours | Backprop, data: Data) -> float:
    """See the module; nats of the whole training set."""
    error = contender.outputs(data.x, ELBO_SAMPLES) - data.y
    nll = 0.5 * (error / NOISE_STD).square() + math.log(NOISE_STD) + 0.5 * math.log(2 * math.pi)
    return float(nll.sum((1, 2)).double().mean()) + contender.kl()


def run(name: str, data: Data, lr: float, seed: int, steps: int) -> Result:
    """Train once.

    Args:
        name: A key of `NAMES`.
        data: The rows.
        lr: First learning rate.
        seed: Of everything.
        steps: Number of steps.
    """
    contender, generator = build(name, data, lr, seed), torch.Generator().manual_seed(seed)
    clock, curve = 0.0, []
    for point in range(POINTS):
        start = time.process_time()
        for i in range(point * steps // POINTS, (point + 1) * steps // POINTS):
            rows = torch.randint(len(data.x), (BATCH,), generator=generator)
            contender.step(data.x[rows], data.y[rows], 0.5 * (1 + math.cos(math.pi * i / steps)))
        clock += time.process_time() - start
        curve.append((clock, negative_elbo(contender, data)))
    outputs = contender.outputs(data.test_x, TEST_SAMPLES).squeeze(-1).double() * data.scale + data.shift
    std = NOISE_STD * data.scale
    densities = -0.5 * ((data.test_y - outputs) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)
    loglik = float((densities.logsumexp(0) - math.log(TEST_SAMPLES)).mean())
    return {"curve": curve, "rmse": float((outputs.mean(0) - data.test_y).square().mean().sqrt()), "loglik": loglik}


def seconds_to(result: Result, target: float) -> float:
    """CPU seconds until a negative ELBO, linear between points of the curve; infinite if it is never reached."""
    before: tuple[float, float] | None = None
    for seconds, value in result["curve"]:
        if value <= target:
            if before is None or before[1] <= value:
                return float(seconds)
            share = (before[1] - target) / (before[1] - value)
            return float(before[0] + share * (seconds - before[0]))
        before = (seconds, value)
    return math.inf


def table(results: Mapping[str, Result]) -> str:
    """Markdown: for each set and method the mean and standard error over its splits; times where both autoguides ran.

    Args:
        results: By ``"set split method"``.
    """
    lines = [HEADER]
    sets = dict.fromkeys(key.split()[0] for key in results)
    for name in sets:
        splits = sorted({int(key.split()[1]) for key in results if key.startswith(f"{name} ")})
        ends = {s: [results[f"{name} {s} {m}"]["curve"][-1][1] for m in GUIDES if f"{name} {s} {m}" in results] for s in splits}
        targets = {s: min(values) for s, values in ends.items() if len(values) == len(GUIDES)}
        for method, label in NAMES.items():
            own = [s for s in splits if f"{name} {s} {method}" in results]
            found = [results[f"{name} {s} {method}"] for s in own]
            if not found:
                continue
            times = [seconds_to(r, targets[s] * 1.005) for s, r in zip(own, found, strict=True) if s in targets]
            reached = [t for t in times if t < math.inf]
            when = f"{statistics.mean(reached):.1f}" if reached else ""
            when += "" if len(reached) == len(times) else f" (reached in {len(reached)} of {len(times)})"
            cells = [
                mean_and_error([r["curve"][-1][1] for r in found], 1),
                mean_and_error([r["rmse"] for r in found], 3),
                mean_and_error([r["loglik"] for r in found], 3),
            ]
            total = f"{statistics.mean(r['curve'][-1][0] for r in found):.1f}"
            lines.append(f"| {name} | {label} | {', '.join(map(str, own))} | {' | '.join(cells)} | {total} | {when} |")
    return "\n".join(lines)


def tune(steps: int, sets: Sequence[str]) -> None:
    """Print the mean final negative ELBO of every rate on split 15."""
    for method, grid in GRIDS.items():
        for lr in grid:
            values = [run(method, Data.load(n, s), lr, s, steps)["curve"][-1][1] for n in sets for s in (15,)]
            print(f"{method} lr {lr:g}: " + " ".join(f"{v:.1f}" for v in values) + f"  mean {statistics.mean(values):.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="splits 0-4")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--splits", type=int, nargs="+")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tune", action="store_true", help="try the learning rates of GRIDS")
    parser.add_argument("--out", type=Path, help="JSON file of all results; a run goes on from it")
    parser.add_argument("--write", action="store_true", help="put the table into docs/bayes-methods.md")
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    if options.tune:
        tune(options.steps, options.sets)
        return
    results: dict[str, Result] = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    for split in options.splits or (range(5) if options.full else (0,)):
        for name in options.sets:
            data = Data.load(name, split)
            for method in options.methods:
                key = f"{name} {split} {method}"
                if key not in results:
                    results[key] = run(method, data, RATES[method], split, options.steps)
                    if options.out:
                        atomic.write_json(options.out, results)
    setup = {**environment(("torch", "pyro-ppl", "numpy", "natgrad-apps")), "threads": 1, "steps": options.steps, "seed": "the split"}
    described = ", ".join(f"{key} {value}" for key, value in setup.items())
    kept = ["FILE" if i and given[i - 1] == "--out" else word for i, word in enumerate(given) if word != "--write"]
    command = " ".join(["python benchmarks/bayes_mean_field.py", *kept])
    text = f"command: `{command}`   {described}\n\n{table(results)}"
    print(text)
    if options.write:
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
