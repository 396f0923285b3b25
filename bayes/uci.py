"""The verb ``uci``: one method on several published splits of a set, split by split resumable, side by side if asked."""

from __future__ import annotations

import math
import multiprocessing
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

import natgrad_apps
from natgrad_apps.bayes.data import UCI, Table, load_uci
from natgrad_apps.bayes.fitting import fit_split, published_split
from natgrad_apps.bayes.study_config import UciConfig
from natgrad_apps.bayes.training import PACKAGES, PROGRAM
from natgrad_apps.errors import unknown_name
from natgrad_apps.runner import provenance, study
from natgrad_apps.runner.folder import RunFolder

METRICS = ("rmse", "loglik_pointwise", "loglik_joint", "crps", "noise_std")
POLL_SECONDS = 0.2
_stop: Event | None = None


def run_uci(config: UciConfig, out: Path) -> None:
    """Train and test on every split and leave a run folder; arguments and errors of `study.start`."""
    study.start(config, out, open_table, _run)


def resume_uci(path: Path) -> None:
    """Go on with the splits that are not finished; arguments and errors of `study.resume`."""
    study.resume(path, UciConfig, open_table, _run)


def open_table(config: UciConfig) -> Table:
    """The set, with every split that is asked for.

    Raises:
        ConfigError: There is no such set, or no such split.
    """
    if config.dataset not in UCI and config.dataset not in UCI.values():
        raise unknown_name("UCI data set", config.dataset, UCI)
    torch.set_num_threads(config.threads)
    table = load_uci(config.dataset)
    for number in config.split_numbers():
        published_split(table, number)
    return table


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of the mean (deviation with the divisor n - 1, over ``sqrt(n)``; NaN for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "se": math.nan}
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return {"mean": mean, "se": math.sqrt(variance / len(values))}


def _name(number: int) -> str:
    return f"split_{number:02d}"


def _run(config: UciConfig, table: Table, folder: RunFolder) -> None:
    numbers = {_name(number): number for number in config.split_numbers()}
    title = f"{config.method} {table.name}"
    plan = study.Plan(title, "splits", list(numbers), f"{PROGRAM} uci --resume {shlex.quote(str(folder.path))}")
    start = time.perf_counter()
    with study.session(plan, folder) as work:
        for number, found in _results(config, table, [numbers[name] for name in work.left], work):
            folder.metrics.write(number, {name: float(found[name]) for name in (*METRICS, "seconds")})
            told = f"rmse {found['rmse']:.4g}  loglik {found['loglik_pointwise']:.4g}  seconds {found['seconds']:.1f}"
            work.keep(_name(number), found, f"split {number}: {told}")
        results = _summarize(config, table, [work.done[name] for name in numbers], time.perf_counter() - start)
        folder.write_results(results)
    text = "  ".join(f"{name} {results[name]['mean']:.4g} +- {results[name]['se']:.2g}" for name in METRICS[:3])
    folder.log(f"done: {text}")
    print(f"{title}, {len(numbers)} splits, mean +- standard error: {text}")
    print(f"run folder: {folder.path}")


def _results(config: UciConfig, table: Table, left: Sequence[int], work: study.Study) -> Iterator[tuple[int, dict[str, Any]]]:
    """Splits as they finish.

    Raises:
        StoppedError: A signal arrived; splits that were finished before have been yielded.
    """
    if config.workers == 1 or len(left) < 2:
        for number in left:
            yield number, _one(config, table, number, work.check)
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(min(config.workers, len(left)), mp_context=context, initializer=_start_worker, initargs=(stop,)) as pool:
        pending: dict[Future[dict[str, Any] | None], int] = {pool.submit(_in_worker, config, number): number for number in left}
        try:
            while pending:
                finished, _ = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in finished:
                    number = pending.pop(future)
                    found = future.result()
                    if found is not None:
                        yield number, found
                if work.flag.is_set and not stop.is_set():
                    stop.set()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
    if work.left:
        work.check()


def _one(config: UciConfig, table: Table, number: int, check: Callable[[], None]) -> dict[str, Any]:
    return {"split": number, **fit_split(table, published_split(table, number), config, config.seed + number, check)}


def _start_worker(stop: Event) -> None:
    global _stop  # noqa: PLW0603 - one per process, set once
    _stop = stop
    # The terminal sends its signal to the whole group; the parent decides.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_worker(config: UciConfig, number: int) -> dict[str, Any] | None:
    """Results of a split, None if it was given up."""
    stop = _stop
    assert stop is not None

    def check() -> None:
        if stop.is_set():
            raise study.StoppedError

    try:
        check()
        return _one(config, open_table(config), number, check)
    except study.StoppedError:
        return None


def _summarize(config: UciConfig, table: Table, splits: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    first = published_split(table, int(splits[0]["split"]))
    return {
        "runner": PROGRAM,
        "dataset": config.dataset,
        "method": config.method,
        **{name: summary([float(s[name]) for s in splits]) for name in METRICS},
        "seconds": math.fsum(float(s["seconds"]) for s in splits),
        "wall_seconds_of_this_session": seconds,
        "splits": [{name: s[name] for name in ("split", *METRICS, "steps", "seconds")} for s in splits],
        "rows": {"train": len(first.train), "test": len(first.test)},
        "seeds": {"first": config.seed, "rule": "first + split"},
        "packages": provenance.package_versions(PACKAGES),
        "source": provenance.git_commit(Path(natgrad_apps.__file__)),
        "machine": provenance.machine(torch.device("cpu")),
    }
