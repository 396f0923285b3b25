"""From a configuration to a trainer, and checkpoints of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

import natgrad_apps
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.data import OGB, GraphData, load_public
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.models import SUMS_FIRST
from natgrad_apps.graphs.splits import Split, SplitOptions, make_split
from natgrad_apps.graphs.tables import load_tables
from natgrad_apps.graphs.trainer import Trainer, seed_all
from natgrad_apps.runner import provenance

PROGRAM = "natgrad-graph"
PACKAGES = ("natgrad-apps", "torch", "torch-geometric", "numpy", "scipy", "pandas")
STATE, CONFIG = "state.pt", "config.yaml"
TABLE = "table"


def open_data(config: TrainConfig) -> GraphData:
    """The graph of a run.

    Raises:
        ConfigError: There is no such graph, or it cannot be read.
    """
    tables = config.data.edges, config.data.nodes
    if config.dataset == TABLE:
        edges, nodes = tables
        if edges is None or nodes is None:
            raise ConfigError("dataset table needs data.edges and data.nodes, the files of your graph")
        data = load_tables(Path(edges), Path(nodes), undirected=config.data.undirected)
    elif tables != (None, None):
        raise ConfigError(f"data.edges and data.nodes are for dataset table; got dataset {config.dataset!r}")
    else:
        data = load_public(config.dataset)
    # Features of the Open Graph Benchmark are averages of word vectors: their sums mean nothing, and may be zero.
    data = data.row_normalized() if config.data.normalize_features and config.dataset not in OGB else data
    return data.with_features("dense" if config.model.name in SUMS_FIRST else config.data.features)


def split_data(config: TrainConfig, data: GraphData) -> tuple[GraphData, Split]:
    """The graph that is trained on, and its split.

    Raises:
        ConfigError: The split is not legal for this graph.
    """
    options = SplitOptions(config.data.per_class, config.data.val, config.data.test)
    return make_split(data, config.split, options, config.seed if config.data.split_seed is None else config.data.split_seed)


def open_trainer(config: TrainConfig, data: GraphData | None = None) -> Trainer:
    """A new trainer; torch's threads and generators are set as the configuration says.

    Args:
        config: The run.
        data: The whole graph, if it was loaded already.

    Raises:
        ConfigError: Data, split, model or device cannot be used.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(resolve_device(config.device))
    graph, split = split_data(config, open_data(config) if data is None else data)
    seed_all(config.seed)
    return Trainer(config, graph, split, device)


def open_learner(config: TrainConfig) -> Learner:
    """A new trainer for the task of the run; see `open_trainer`.

    Raises:
        ConfigError: Data, split, model or device cannot be used.
    """
    if config.task == "nodes":
        return open_trainer(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(resolve_device(config.device))
    seed = config.seed if config.data.split_seed is None else config.data.split_seed
    if config.task == "links":
        from natgrad_apps.graphs.links import LinkTrainer, split_links  # noqa: PLC0415 - one task needs one of them

        data = open_data(config)
        links = split_links(data, config.links.val, config.links.test, seed)
        seed_all(config.seed)
        return LinkTrainer(config, data, links, device)
    from natgrad_apps.graphs.graph_sets import load_graph_set, split_graphs  # noqa: PLC0415
    from natgrad_apps.graphs.graph_trainer import GraphTrainer  # noqa: PLC0415

    graphs = load_graph_set(config.dataset)
    split = split_graphs(graphs, config.graphs.train, config.graphs.val, seed)
    seed_all(config.seed)
    return GraphTrainer(config, graphs, split, device)


def resolve_device(name: str) -> str:
    """The device to use.

    Raises:
        ConfigError: It is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[name]:
        found = ", ".join(key for key, value in there.items() if value)
        raise ConfigError(f"device {name!r} is not available to torch {torch.__version__} on this machine; available: auto, {found}")
    return name


def pack(trainer: Learner, config_yaml: str) -> dict[str, bytes]:
    """The files of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(trainer.state_dict(), buffer)
    return {STATE: buffer.getvalue(), CONFIG: config_yaml.encode()}


def unpack(files: Mapping[str, bytes], trainer: Learner) -> None:
    """Give the state of a checkpoint to a trainer; only tensors and plain values are read.

    Raises:
        ConfigError: It is no checkpoint of a run of this configuration.
    """
    if STATE not in files:
        raise ConfigError(f"the checkpoint has no {STATE}")
    try:
        trainer.load_state_dict(torch.load(io.BytesIO(files[STATE]), map_location="cpu", weights_only=True))
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(f"the checkpoint does not fit this model or this graph: {' '.join(str(error).split())}") from error


def origin(device: torch.device) -> dict[str, object]:
    """Package versions, commit and machine, for ``results.json``."""
    return {
        "packages": provenance.package_versions(PACKAGES),
        "source": provenance.git_commit(Path(natgrad_apps.__file__)),
        "machine": provenance.machine(device),
    }
