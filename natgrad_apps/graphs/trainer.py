"""Training of a node classifier: on the whole graph, one step an epoch, or on batches of labelled nodes with their neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.counting import Counter
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.measures import Measures, measure
from natgrad_apps.graphs.models import WEIGHTED, build_model, check_logits
from natgrad_apps.graphs.node_table import node_table
from natgrad_apps.graphs.records import Terms
from natgrad_apps.graphs.sampling import ALL, NodeBatches
from natgrad_apps.graphs.splits import Split
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.ranks import Ranks


class Loader(Protocol):
    """Mini-batches as `torch_geometric.loader.NeighborLoader` gives them; `NodeBatches` is one."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def __iter__(self) -> Iterator[Any]:
        """`torch_geometric.data.Data` with ``x, edge_index, y, batch_size``, and ``edge_weight`` where there is one."""


class Trainer(Learner):
    """One network on one graph.

    Args:
        config: The run; its seed has been set by `seed_all`.
        data: The graph.
        split: Its split.
        device: Where to train.
        loader: Batches of your own, such as those of torch-geometric's `NeighborLoader` over the training nodes; they cannot be resumed
            within an epoch. None for those of the configuration, or for the whole graph.

    Raises:
        ConfigError: The model cannot be built, or does not give logits.
    """

    def __init__(self, config: TrainConfig, data: GraphData, split: Split, device: torch.device, loader: Loader | None = None) -> None:
        fixed = loader is None and not config.sampling.batch_size and not config.data.inductive
        self.data: GraphData = data.to(device)
        self.split: Split = split
        self._graph = self.data if fixed or config.model.name not in WEIGHTED else self.data.gcn_normalized()
        model = build_model(config.model.options(), data.x.shape[1], data.classes, edges="fixed" if fixed else "weighted").to(device)
        _check(model, self._graph, config.model.name)
        super().__init__(config, model, device)
        self._train, self._val, self._test = (part.to(device) for part in (split.train, split.val, split.test))
        # What training sees: the whole graph, or the training nodes with the edges between them.
        self._seen, self._labelled = self._graph, self._train
        if config.data.inductive:
            alone = data.subgraph(split.train).to(device)
            self._seen = alone.gcn_normalized() if config.model.name in WEIGHTED else alone
            self._labelled = torch.arange(len(split.train), device=device)
        self._loader = self._batches(1) if loader is None and config.sampling.batch_size else loader
        if self._loader is None:
            pseudo = config.pseudo_labels.options()
            self._counter = Counter(self._seen.y, data.classes, self._labelled, pseudo, config.epochs)
        else:
            self.batches = len(self._loader)
        self._foreign: Iterator[Any] = iter(())

    def distribute(self, group: Any = None) -> Ranks:
        """See `Learner.distribute`; the seeds of each batch are split over the ranks.

        Raises:
            ConfigError: Training is not by batches of the configuration, or see `Learner.distribute`.
        """
        if not isinstance(self._loader, NodeBatches):
            raise ConfigError(
                "several processes share the seed nodes of batches: set sampling.batch_size to the nodes of a step, all processes together"
            )
        ranks = super().distribute(group)
        self._loader = self._batches(ranks.size)
        self.batches = len(self._loader)
        if not self.batches:
            raise ConfigError(f"{len(self._labelled)} training nodes are too few for {ranks.size} processes")
        return ranks

    def terms(self) -> Terms:
        """The labelled nodes, and those with pseudo-labels, on the whole graph; or the seeds of a batch."""
        return self._whole() if self._loader is None else self._of_batch(self._next_batch())

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Logits ``[N, C]`` of the whole graph without dropout, with the averaged weights if there are any."""
        self.model.eval()
        with self.average.shown():
            return check_logits(call(self.model, self._graph), self.data.nodes, self.data.classes)

    def table(self) -> str:
        """A row for each node."""
        return node_table(self.data, self.split, self.predict().softmax(-1))

    def evaluate(self) -> tuple[Measures, Measures | None, Measures | None]:
        """Measures of the training, validation and test nodes."""
        logits, y = self.predict(), self.data.y
        val, test = (measure(logits[part], y[part]) if len(part) else None for part in (self._val, self._test))
        return measure(logits[self._train], y[self._train]), val, test

    def _whole(self) -> Terms:
        config, pseudo = self.config, self.config.pseudo_labels
        own_predictions = None
        if pseudo.enabled and pseudo.predict == "eval":
            self.model.eval()
            with torch.no_grad():
                own_predictions = call(self.model, self._seen)
            self.model.train()
        logits = call(self.model, self._seen)
        counted = self._counter.count(self.progress.epoch + 1, logits.detach() if own_predictions is None else own_predictions)
        likelihood = Categorical(logits).weighted(*self._counter.fisher(config.optimizer.fisher_nodes, counted))
        return Terms(likelihood, counted.loss(logits), len(self._labelled))

    def _of_batch(self, batch: Any) -> Terms:
        """Only seeds have terms; the other nodes of a batch lack neighbours of their own."""
        batch = batch.to(self.device)
        seeds = int(batch.batch_size)
        logits = call(self.model, batch)
        support = torch.arange(seeds, device=logits.device)
        weights = torch.zeros(len(logits), device=logits.device, dtype=logits.dtype)
        weights[:seeds] = 1.0
        return Terms(Categorical(logits).weighted(weights, support), F.cross_entropy(logits[:seeds], batch.y[:seeds]), seeds)

    def _next_batch(self) -> Any:
        progress, loader = self.progress, self._loader
        assert loader is not None
        if isinstance(loader, NodeBatches):
            return loader.batch(progress.epoch, progress.batch, self._share())
        if progress.batch == 0:
            self._foreign = iter(loader)
        try:
            return next(self._foreign)
        except StopIteration:
            raise ConfigError("a loader of your own cannot go on within an epoch; resume from a checkpoint between two epochs") from None

    def _share(self) -> slice:
        """The seeds of a batch that this rank takes: every size-th one."""
        return slice(None) if self.ranks is None else slice(self.ranks.rank, None, self.ranks.size)

    def _batches(self, least: int) -> NodeBatches:
        sampling, model = self.config.sampling, self.config.model
        fanouts = sampling.fanouts or [ALL] * model.layers
        return NodeBatches(self._seen, self._labelled, fanouts, sampling.batch_size, self.config.seed, least)


@torch.no_grad()
def _check(model: nn.Module, graph: GraphData, name: str) -> None:
    """Refuse a network that gives no logits; lazy parameters get their shapes here."""
    state = torch.get_rng_state()
    try:
        check_logits(call(model.eval(), graph), graph.nodes, graph.classes)
    except ConfigError:
        raise
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(f"model {name!r} fails on {graph.name} as model(x: {list(graph.x.shape)}, edge_index): {error}") from error
    torch.set_rng_state(state)


def call(model: nn.Module, graph: Any) -> Tensor:
    """Outputs ``[n, C]`` of a network for a graph or a batch with ``x, edge_index`` and perhaps ``edge_weight``."""
    weight = getattr(graph, "edge_weight", None)
    outputs: Tensor = model(graph.x, graph.edge_index) if weight is None else model(graph.x, graph.edge_index, weight)
    return outputs


def seed_all(seed: int) -> None:
    """Seed torch's generators, which weights and dropout are drawn from."""
    torch.manual_seed(seed)
