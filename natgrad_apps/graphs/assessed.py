"""The verbs ``evaluate`` and ``plot`` for runs of the verb ``uncertainty``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.assessing import NODES, Report, describe, load, open_assessment
from natgrad_apps.graphs.evaluating import open_files, write_evaluation
from natgrad_apps.graphs.posterior_config import UncertaintyConfig
from natgrad_apps.runner import schema
from natgrad_apps.runner.yaml_text import read_yaml


def is_assessment(path: Path) -> bool:
    """Whether a run folder or checkpoint is of the verb ``uncertainty``: its settings have a posterior.

    Raises:
        ConfigError: Its settings cannot be read.
    """
    file = path / runs.CONFIG
    return file.is_file() and "posterior" in read_yaml(file.read_text(encoding="utf-8"), str(file)).entries


def open_report(path: Path, device: str | None = None) -> Report:
    """What a finished run found, computed from its checkpoint.

    Args:
        path: Run folder or checkpoint.
        device: Where the networks shall live; None for the run's device.

    Raises:
        ConfigError: There is no intact checkpoint, its data is gone, or its fits are not finished.
    """
    files = open_files(path)
    config = schema.read(UncertaintyConfig, read_yaml(files[runs.CONFIG].decode(), runs.CONFIG))
    if device is not None:
        config = dataclasses.replace(config, device=device)  # type: ignore[arg-type]
    assessment = open_assessment(config)
    load(files, assessment)
    if not assessment.done:
        told = f"{assessment.epochs} of {assessment.total} epochs of its fits are done"
        raise ConfigError(f"{str(path)!r}: {told}; finish it first: {runs.PROGRAM} uncertainty --resume {path}")
    return Report.of(assessment)


def evaluate(path: Path, out: Path | None, device: str | None) -> None:
    """Print the measures; write ``evaluation.json`` and ``nodes.csv``.

    Args:
        path: Run folder or checkpoint.
        out: Folder of the files; None for `path`.
        device: Where the networks shall live; None for the run's device.

    Raises:
        ConfigError: There is no intact checkpoint of a finished run, or a file cannot be written.
    """
    report = open_report(path, device)
    found = {**report.numbers(), **runs.origin(report.assessment.device)}
    print(describe(found))
    write_evaluation(out or path, found, NODES, report.table())
