"""The verb ``uci``: one method on several published splits of a set, split by split resumable, side by side if asked."""

from __future__ import annotations

import json
import math
import multiprocessing
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

import natgrad_apps
from natgrad_apps.bayes.data import UCI, Table, load_uci
from natgrad_apps.bayes.fitting import fit_split, published_split
from natgrad_apps.bayes.study_config import UciConfig
from natgrad_apps.bayes.training import PACKAGES, PROGRAM
from natgrad_apps.errors import ConfigError, unknown_name
from natgrad_apps.runner import atomic, provenance, schema
from natgrad_apps.runner.arguments import read_file
from natgrad_apps.runner.folder import CONFIG, RunFolder, check_new, read_results, require_run
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.progress import ProgressView

METRICS = ("rmse", "loglik_pointwise", "loglik_joint", "crps", "noise_std")
POLL_SECONDS = 0.2
_stop: Event | None = None


class SplitStoppedError(Exception):
    """The training of a split was given up, because a signal arrived."""


def run_uci(config: UciConfig, out: Path) -> None:
    """Train and test on every split and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration or the data cannot be used; nothing has been written then.
        InterruptedRunError: A signal arrived; finished splits are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    check_new(out)
    table = open_table(config)
    with ExitStack() as stack:
        folder = RunFolder.create(out, schema.to_yaml(config))
        stack.callback(folder.close)
        _run(config, table, folder)


def resume_uci(path: Path) -> None:
    """Go on with the splits that are not finished.

    Raises:
        ConfigError: It is no folder of such a run.
        InterruptedRunError: A signal arrived; finished splits are kept.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    require_run(path)
    if read_results(path) is not None:
        print(f"{path} is complete; nothing is left to do")
        return
    config = schema.read(UciConfig, read_file(path / CONFIG))
    table = open_table(config)
    with ExitStack() as stack:
        folder = RunFolder.reopen(path)
        stack.callback(folder.close)
        _run(config, table, folder)


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


def split_file(folder: Path, number: int) -> Path:
    """File of the results of a split."""
    return folder / "splits" / f"split_{number:02d}.json"


def read_split(folder: Path, number: int) -> dict[str, Any] | None:
    """Results of a split, None if it is not finished.

    Raises:
        ConfigError: The file is damaged.
    """
    file = split_file(folder, number)
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{str(file)!r} is damaged: {error}; remove it to train that split again") from error


def _run(config: UciConfig, table: Table, folder: RunFolder) -> None:
    numbers = config.split_numbers()
    done = {n: found for n in numbers if (found := read_split(folder.path, n)) is not None}
    left = [n for n in numbers if n not in done]
    title = f"{config.method} {table.name}"
    resume = f"{PROGRAM} uci --resume {shlex.quote(str(folder.path))}"
    view = ProgressView(title, len(numbers), len(done), folder.log)
    view.unit = "splits"
    folder.log(f"start with {len(left)} of {len(numbers)} splits")
    start = time.perf_counter()
    with ExitStack() as stack:
        flag = stack.enter_context(InterruptFlag())
        stack.enter_context(failures_to(folder, resume))
        stack.enter_context(view)
        stack.enter_context(warnings_to(view))
        (folder.path / "splits").mkdir(exist_ok=True)
        for number, found in _results(config, table, left, flag):
            atomic.write_json(split_file(folder.path, number), found)
            done[number] = found
            folder.metrics.write(number, {name: float(found[name]) for name in (*METRICS, "seconds")})
            numbers_shown = {
                "rmse": f"{found['rmse']:.4g}",
                "loglik": f"{found['loglik_pointwise']:.4g}",
                "seconds": f"{found['seconds']:.1f}",
            }
            view.say(f"split {number}: " + "  ".join(f"{name} {text}" for name, text in numbers_shown.items()))
            view.update(len(done), {}, last=len(done) == len(numbers))
        if len(done) < len(numbers):
            folder.log(f"interrupted by {flag.name} after {len(done)} of {len(numbers)} splits")
            raise InterruptedRunError(resume)
        results = _summarize(config, table, [done[n] for n in numbers], time.perf_counter() - start)
        folder.write_results(results)
    text = "  ".join(f"{name} {results[name]['mean']:.4g} +- {results[name]['se']:.2g}" for name in METRICS[:3])
    folder.log(f"done: {text}")
    print(f"{title}, {len(numbers)} splits, mean +- standard error: {text}")
    print(f"run folder: {folder.path}")


def _results(config: UciConfig, table: Table, left: Sequence[int], flag: InterruptFlag) -> Iterator[tuple[int, dict[str, Any]]]:
    """Splits as they finish; ends early when a signal arrives."""
    if config.workers == 1 or len(left) < 2:

        def check() -> None:
            if flag.is_set:
                raise SplitStoppedError

        for number in left:
            try:
                yield number, _one(config, table, number, check)
            except SplitStoppedError:
                return
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
                if flag.is_set and not stop.is_set():
                    stop.set()
        finally:
            stop.set()
            for future in pending:
                future.cancel()


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
            raise SplitStoppedError

    try:
        check()
        return _one(config, open_table(config), number, check)
    except SplitStoppedError:
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
