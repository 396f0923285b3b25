"""What a checkpoint holds: the posterior, the names and units of the data, the configuration. Nothing in it is executed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from natgrad_apps.bayes.config import TrainConfig
from natgrad_apps.bayes.fitted import Fitted, Scales, Schema
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, schema
from natgrad_apps.runner.checkpoints import Checkpoint, CheckpointStore
from natgrad_apps.runner.yaml_text import read_yaml

STATE, DATA, RUN, CONFIG = "posterior.pt", "data.json", "run.json", "config.yaml"


@dataclass
class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        training_seconds: Time spent on steps.
        seconds: Time since the start, without pauses between interruption and resumption.
        sessions: Number of processes that took part.
    """

    training_seconds: float = 0.0
    seconds: float = 0.0
    sessions: int = 1


def pack(fit: Fit, progress: Progress, config_yaml: str) -> dict[str, bytes]:
    """The files of a checkpoint.

    Args:
        fit: Between two steps.
        progress: How far the run is.
        config_yaml: The resolved configuration, so that a checkpoint can be used away from its run.
    """
    buffer = io.BytesIO()
    torch.save(fit.state_dict(), buffer)
    data = {"schema": fit.schema.to_dict(), "scales": fit.scales.to_dict()}
    return {
        STATE: buffer.getvalue(),
        DATA: json.dumps(data).encode(),
        RUN: json.dumps(asdict(progress)).encode(),
        CONFIG: config_yaml.encode(),
    }


def read_config(files: Mapping[str, bytes]) -> TrainConfig:
    """The configuration of a checkpoint.

    Raises:
        ConfigError: There is none.
    """
    return schema.read(TrainConfig, read_yaml(_file(files, CONFIG).decode(), CONFIG))


def restore(files: Mapping[str, bytes], fit: Fit) -> Progress:
    """Bring a new training to the state of a checkpoint.

    Args:
        files: Of the checkpoint.
        fit: Built with the checkpoint's configuration.

    Raises:
        ConfigError: The checkpoint is of another configuration, or the data set has changed since.
    """
    names, scales = _data(files)
    if names != fit.schema or scales.to_dict() != fit.scales.to_dict():
        raise ConfigError(
            f"the data set {fit.schema.name!r} has changed since the checkpoint was written (names, number of rows, means or deviations), "
            "so the run cannot go on; put the old data back, or start a new run"
        )
    fit.load_state_dict(_state(files))
    return Progress(**json.loads(_file(files, RUN)))


def open_fitted(files: Mapping[str, bytes], device: str = "cpu") -> tuple[Fitted, TrainConfig]:
    """The posterior of a checkpoint, ready to predict; the training data are not needed.

    Args:
        files: Of the checkpoint.
        device: Where to put it.

    Raises:
        ConfigError: It is no checkpoint of this runner.
    """
    config = read_config(files)
    names, scales = _data(files)
    fitted = Fitted(names, scales, config, config.seed, device)
    fitted.vi.load_state_dict(_state(files)["vi"])
    return fitted, config


def find(path: Path) -> tuple[Path, Checkpoint]:
    """The last checkpoint from what a user points at.

    Args:
        path: A run folder, its ``checkpoint`` folder, or one checkpoint.

    Returns:
        The folder that belongs to it (the run folder, or the checkpoint itself) and the verified checkpoint.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    if not path.exists():
        raise ConfigError(f"there is no {str(path)!r}; give a run folder or a checkpoint")
    if (path / checkpoints.MANIFEST).is_file():
        return path, checkpoints.load(path)
    store = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    if not CheckpointStore(store).steps():
        raise ConfigError(f"{str(path)!r} is neither a run folder with a checkpoint nor a checkpoint")
    owner = store.parent if (store.parent / CONFIG).is_file() else store
    return owner, checkpoints.load(CheckpointStore(store).find())


def _data(files: Mapping[str, bytes]) -> tuple[Schema, Scales]:
    saved = json.loads(_file(files, DATA))
    return Schema.from_dict(saved["schema"]), Scales.from_dict(saved["scales"])


def _state(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(_file(files, STATE)), map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise ConfigError(f"{STATE} of the checkpoint cannot be read: {' '.join(str(error).split())[:200]}") from error
    return state


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ConfigError(f"the checkpoint has no {name}; it is not one of natgrad-bayes")
    return files[name]
