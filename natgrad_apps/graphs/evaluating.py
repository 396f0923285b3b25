"""The verb ``evaluate``: measures of the network of a checkpoint, and its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.training import describe_result
from natgrad_apps.runner import atomic, checkpoints, schema
from natgrad_apps.runner.checkpoints import CheckpointStore
from natgrad_apps.runner.yaml_text import read_yaml


def open_files(path: Path) -> Mapping[str, bytes]:
    """The files of a checkpoint, of which one is ``config.yaml``.

    Args:
        path: A run folder, of which it is the last, or a checkpoint.

    Raises:
        ConfigError: There is no intact checkpoint.
    """
    if not path.exists():
        raise ConfigError(f"there is no {str(path)!r}; give a run folder or a checkpoint")
    if (path / checkpoints.MANIFEST).is_file():
        saved = checkpoints.load(path)
    else:
        store = CheckpointStore(path / "checkpoint")
        if not store.steps():
            raise ConfigError(f"{str(path)!r} is neither a run folder with a checkpoint nor a checkpoint")
        saved = checkpoints.load(store.find())
    if runs.CONFIG not in saved.files:
        raise ConfigError(f"the checkpoint {saved.folder} has no {runs.CONFIG}")
    return saved.files


def open_checkpoint(path: Path, device: str | None = None) -> tuple[Learner, Path]:
    """The trainer of a checkpoint, with the weights of the epoch that is reported.

    Args:
        path: A run folder, or a checkpoint.
        device: Where the network shall live; None for the run's device.

    Returns:
        The trainer, and the folder that belongs to it.

    Raises:
        ConfigError: There is no intact checkpoint, or its data is gone.
    """
    files = open_files(path)
    config = schema.read(TrainConfig, read_yaml(files[runs.CONFIG].decode(), runs.CONFIG))
    if device is not None:
        config = dataclasses.replace(config, device=device)  # type: ignore[arg-type]
    trainer = runs.open_learner(config)
    runs.unpack(files, trainer)
    trainer.load_best()
    return trainer, path


def evaluate(path: Path, out: Path | None, device: str | None) -> None:
    """Print the measures; write ``evaluation.json`` and ``predictions.csv``.

    Args:
        path: Run folder or checkpoint.
        out: Folder of the files; None for `path`.
        device: Where the network shall live; None for the run's device.

    Raises:
        ConfigError: There is no intact checkpoint, or a file cannot be written.
    """
    trainer, owner = open_checkpoint(path, device)
    result: dict[str, Any] = {
        "runner": runs.PROGRAM,
        **describe_result(trainer),
        "epoch": trainer.progress.best_epoch,
        "seeds": {"run": trainer.config.seed, "split": trainer.split.seed},
        **runs.origin(trainer.device),
    }
    print(f"{result['dataset']}, {trainer.split}, epoch {trainer.progress.best_epoch}")
    for part in ("train", "val", "test"):
        if result[part] is not None:
            print(f"  {part:<6}" + "  ".join(f"{name} {value:.4g}" for name, value in result[part].items()))
    write_evaluation(out or owner, result, "predictions.csv", trainer.table())


def write_evaluation(target: Path, result: Mapping[str, Any], name: str, table: str) -> None:
    """Write ``evaluation.json`` and a table of predictions, and say where they are.

    Args:
        target: Their folder; made if there is none.
        result: The measures.
        name: File name of the table.
        table: Its text.

    Raises:
        ConfigError: A file cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        atomic.write_json(target / "evaluation.json", result)
        atomic.write_text(target / name, table)
    except OSError as error:
        raise ConfigError(f"{str(target)!r} cannot be written: {error.strerror}") from error
    print(f"written: {target / 'evaluation.json'}, {target / name}")
