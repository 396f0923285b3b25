"""UCI regression with the published splits: every method with one configuration for all sets, in one run, beside published numbers.

    python benchmarks/bayes_uci.py                                   # boston, concrete, yacht, splits 0-1, every method
    python benchmarks/bayes_uci.py --methods noisy_kfac --splits 0-19
    python benchmarks/bayes_uci.py --full                            # seven sets, 20 splits (protein 5): hours

The configuration is the preset ``uci`` of `natgrad-bayes`; methods differ in the learning rate only (0.05 for the noisy methods, 0.01 for
Vadam, 0.1 for the others). It was chosen for noisy K-FAC on parts of the training rows of splits 10-12 (protein: 3). Noisy K-FAC and EKFAC
train ten splits side by side with the package's curvature and posteriors (`_stacked`, which a test holds to the package's own training);
``--one_by_one`` trains each with the package's loop. Each result is written to ``--out`` at once: a run that is stopped and started
again with the same ``--out`` goes on where it was.

Prints for each set and method the mean and the standard error over splits of RMSE and of pointwise and joint test log-likelihood, in the
unit of the target, and the CPU seconds of one split (of a stack: its share). ``--write`` puts the tables into ``docs/bayes.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._deterministic import fit_deterministic
from benchmarks._pages import mean_and_error, write_block
from benchmarks._stacked import fit_splits
from natgrad_apps._resources import config_path
from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import Split, load_uci
from natgrad_apps.bayes.fitting import fit_split, published_split
from natgrad_apps.bayes.recipes import methods
from natgrad_apps.bayes.study_config import UciConfig, parse_splits
from natgrad_apps.bayes.uci import summary
from natgrad_apps.runner import atomic, provenance, schema
from natgrad_apps.runner.arguments import read_file

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "bayes.md"
BEGIN, END = "<!-- results of bayes_uci.py: begin -->", "<!-- results of bayes_uci.py: end -->"
DETERMINISTIC = "deterministic"
METHODS = ("noisy_kfac", "noisy_ekfac", "noisy_adam", "vadam", "vogn", DETERMINISTIC)
"""The deterministic net is least squares by Adam, see `_deterministic`."""
QUICK, SEVEN = ("boston", "concrete", "yacht"), ("boston", "concrete", "kin8nm", "naval", "power", "protein", "yacht")
STACKED, STACK = ("noisy_kfac", "noisy_ekfac"), 10
"""Methods whose splits are trained side by side (`_stacked`), and how many."""
HELD_OUT = 0.15
VALUES = ("rmse", "loglik_pointwise", "loglik_joint")
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
    "SLANG (Mishkin et al. 2018; joint LL)": {
        "boston": ("3.21 ± 0.19", "-2.58 ± 0.05"),
        "concrete": ("5.58 ± 0.19", "-3.13 ± 0.03"),
        "kin8nm": ("0.08 ± 0.00", "1.06 ± 0.00"),
        "naval": ("0.00 ± 0.00", "4.76 ± 0.00"),
        "power": ("4.16 ± 0.04", "-2.84 ± 0.01"),
        "yacht": ("1.08 ± 0.06", "-1.88 ± 0.01"),
    },
    "Bayes by backprop (same source; joint LL)": {
        "boston": ("3.43 ± 0.20", "-2.66 ± 0.06"),
        "concrete": ("6.16 ± 0.13", "-3.25 ± 0.02"),
        "kin8nm": ("0.08 ± 0.00", "1.07 ± 0.00"),
        "naval": ("0.00 ± 0.00", "4.61 ± 0.01"),
        "power": ("4.21 ± 0.03", "-2.86 ± 0.01"),
        "yacht": ("1.13 ± 0.06", "-1.56 ± 0.02"),
    },
    "MC dropout, tuned per split (Gal & Ghahramani, 2018 re-run; pointwise LL)": {
        "boston": ("2.90 ± 0.18", "-2.40 ± 0.04"),
        "concrete": ("4.82 ± 0.16", "-2.93 ± 0.02"),
        "kin8nm": ("0.08 ± 0.00", "1.14 ± 0.01"),
        "naval": ("0.00 ± 0.00", "4.45 ± 0.00"),
        "power": ("4.01 ± 0.04", "-2.80 ± 0.01"),
        "protein": ("4.27 ± 0.02", "-2.87 ± 0.00"),
        "yacht": ("0.67 ± 0.05", "-1.25 ± 0.01"),
    },
}
Results = dict[str, dict[str, Any]]


def recipe(method: str, overrides: Mapping[str, Any]) -> RecipeConfig:
    """The preset with a method and what differs from it.

    Args:
        method: A key of `METHODS`.
        overrides: Inference settings that the command line changes.
    """
    preset = schema.read(UciConfig, read_file(config_path("bayes", "uci")))
    name = "noisy_kfac" if method == DETERMINISTIC else method
    legal = set(inspect.signature(methods()[name]).parameters) | set(schema.to_plain(preset.inference)) - {"damping"}
    inference = dataclasses.replace(preset.inference, **{key: value for key, value in overrides.items() if key in legal})
    return RecipeConfig(name, preset.model, inference, preset.training, preset.prediction)


def stacks(sets: Sequence[str], splits: Sequence[int] | None, methods: Sequence[str], size: int) -> Iterator[tuple[str, list[int], str]]:
    """Set, splits and method of what is trained together.

    Args:
        sets: Names.
        splits: Numbers; None for all that a set has.
        methods: Names.
        size: Splits that are trained side by side, where the method can.
    """
    for name in sets:
        count = len(load_uci(name).splits)
        numbers = [s for s in (range(count) if splits is None else splits) if s < count]
        for method in methods:
            width = size if method in STACKED else 1
            yield from ((name, numbers[i : i + width], method) for i in range(0, len(numbers), width))


def held_out(split: Split, seed: int) -> Split:
    """A split of the training rows: `HELD_OUT` of them test, and the published test rows are not used.

    Args:
        split: Published.
        seed: Which rows.
    """
    order = np.random.default_rng(seed).permutation(split.train)
    count = int(len(order) * HELD_OUT)
    return Split(order[count:], order[:count])


def run(name: str, splits: Sequence[int], method: str, overrides: Mapping[str, Any], *, validation: bool = False) -> list[dict[str, Any]]:
    """Train and test on splits, side by side if there are several.

    Args:
        name: Data set.
        splits: Numbers of the splits, and their seeds.
        method: A key of `METHODS`.
        overrides: Inference settings that the command line changes.
        validation: Whether a part of the training rows tests.
    """
    table, start = load_uci(name), time.process_time()
    rows, chosen = [published_split(table, split) for split in splits], recipe(method, overrides)
    if validation:
        rows = [held_out(row, split) for row, split in zip(rows, splits, strict=True)]
    if method == DETERMINISTIC:
        found = [fit_deterministic(table, rows[0], chosen, splits[0])]
    elif len(splits) > 1:
        found = fit_splits(table, rows, chosen, splits)
    else:
        found = [fit_split(table, rows[0], chosen, splits[0])]
    seconds = (time.process_time() - start) / len(splits)
    return [{**{key: one[key] for key in (*VALUES, "noise_std", "steps")}, "cpu_seconds": seconds, "stack": len(splits)} for one in found]


def tables(results: Results) -> str:
    """Markdown: a table for each set, and one of the splits that all of its methods have in common where some have more.

    Args:
        results: By ``"set split method"``.
    """
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for key, value in results.items():
        name, split, method = key.split()
        found.setdefault(name, {}).setdefault(method, {})[int(split)] = value
    parts = []
    for name, by_method in sorted(found.items()):
        common = set.intersection(*(set(values) for values in by_method.values()))
        published = []
        for source, numbers in PUBLISHED.items():
            if name in numbers:
                rmse, loglik = numbers[name]
                pair = ("", loglik) if "joint" in source else (loglik, "")
                published.append(f"| {source} | {'0-4' if name == 'protein' else '0-19'} | {rmse} | {pair[0]} | {pair[1]} | |")
        parts.append(_table(name, by_method, published))
        if common and any(set(values) != common for values in by_method.values()):
            title = f"{name}, the same splits for every method: {', '.join(map(str, sorted(common)))}"
            parts.append(_table(title, {method: {s: values[s] for s in common} for method, values in by_method.items()}, []))
    return "\n\n".join(parts)


def _table(title: str, by_method: Mapping[str, Mapping[int, Mapping[str, float]]], further: Sequence[str]) -> str:
    lines = [f"**{title}**", "", "| method | splits | RMSE | LL pointwise | LL joint | CPU s a split |", "|---|---|---|---|---|---|"]
    for method, by_split in by_method.items():
        values = list(by_split.values())
        cells = [_cell([v[key] for v in values]) for key in VALUES]
        seconds = math.fsum(v["cpu_seconds"] for v in values) / len(values)
        lines.append(f"| {method} | {_ranges(sorted(by_split))} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join([*lines, *further])


def _ranges(numbers: Sequence[int]) -> str:
    """``0-4, 7`` for 0, 1, 2, 3, 4, 7."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _cell(values: Sequence[float]) -> str:
    size = abs(summary(values)["mean"])
    return mean_and_error(values, 2 if size >= 0.5 else 5 if size < 0.01 else 4)


def read_results(path: Path, settings: Mapping[str, Any]) -> Results:
    """What an earlier run left, empty for a new one.

    Args:
        path: The JSON file.
        settings: Of this run.

    Raises:
        SystemExit: The file is of other settings.
    """
    if not path.is_file():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["settings"] != settings:
        raise SystemExit(f"{path} was written with other settings; give another --out, or remove it")
    found: Results = saved["results"]
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SEVEN, help="data sets (default: boston concrete yacht)")
    parser.add_argument("--splits", help="such as 0-4 (default: 0-1; all with --full)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--validation", action="store_true", help="test on 15 %% of the training rows, never on the published test rows")
    parser.add_argument("--one_by_one", action="store_true", help="train with the package's own loop, split by split")
    parser.add_argument("--full", action="store_true", help="seven sets, all splits")
    parser.add_argument("--learn_prior", choices=("true", "false"), help="whether each layer's prior precision is learned (default: true)")
    parser.add_argument("--warm_up", type=float, help="share of the run in which the weight of the KL divergence rises (default: 0.5)")
    parser.add_argument("--damping", type=float, help="extrinsic damping of the methods that have one (default: theirs, 0.001)")
    parser.add_argument("--out", type=Path, default=Path("bayes_uci.json"), help="JSON file of all results; a run goes on from it")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/bayes.md")
    parser.add_argument("--print", action="store_true", help="train nothing: print (and --write) what --out holds")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    options = _arguments(argv)
    torch.set_num_threads(1)
    given = {"learn_prior": options.learn_prior and options.learn_prior == "true", "warm_up": options.warm_up, "damping": options.damping}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = {"validation": options.validation, **{method: schema.to_plain(recipe(method, overrides)) for method in METHODS}}
    results = read_results(options.out, settings)
    sets = options.sets or (SEVEN if options.full else QUICK)
    splits = parse_splits(options.splits) if options.splits else None if options.full else [0, 1]
    source = {"commit": provenance.git_commit(ROOT / "natgrad_apps" / "__init__.py"), "machine": provenance.machine(torch.device("cpu"))}
    for name, numbers, method in [] if options.print else stacks(sets, splits, options.methods, 1 if options.one_by_one else STACK):
        missing = [split for split in numbers if f"{name} {split} {method}" not in results]
        if not missing:
            continue
        for split, found in zip(missing, run(name, missing, method, overrides, validation=options.validation), strict=True):
            results[f"{name} {split} {method}"] = found
            print(f"{name} {split} {method}: rmse {found['rmse']:.4g}  loglik {found['loglik_pointwise']:.4g}", flush=True)
        atomic.write_json(options.out, {"settings": settings, "source": source, "results": results})
    text = tables(results)
    print("\n" + text)
    if options.write:
        flags = "".join(f" --{name} {str(value).lower()}" for name, value in overrides.items())
        flags += " --sets ... --methods ... --splits ..."
        machine = f"{os.cpu_count()} cores shared with other work, torch {torch.__version__}, Python {platform.python_version()}"
        write_block(f"command: `python benchmarks/bayes_uci.py{flags}`   {machine}\n\n{text}", DOCUMENT, (BEGIN, END))


if __name__ == "__main__":
    main()
