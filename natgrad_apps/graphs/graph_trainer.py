"""Graph classification: one class a graph, from its pooled nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torch_geometric.nn import global_add_pool, global_mean_pool

from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.graph_sets import GraphSet, GraphSplit
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.measures import Measures, measure
from natgrad_apps.graphs.models import build_model, check_logits
from natgrad_apps.graphs.node_table import csv_text
from natgrad_apps.graphs.records import Terms
from natgrad_apps.graphs.sampling import generator_of
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.ranks import Ranks

_EVALUATED = 256
POOLS = {"mean": global_mean_pool, "sum": global_add_pool}


class PooledNet(nn.Module):
    """A graph network, its nodes pooled, and a linear layer.

    Args:
        body: Gives ``[n, hidden]``.
        hidden: Its width.
        classes: Number of classes.
        pooling: mean or sum.
        dropout: Before the linear layer.
    """

    def __init__(self, body: nn.Module, hidden: int, classes: int, pooling: str, dropout: float) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(hidden, classes)
        self._pool, self._dropout = POOLS[pooling], dropout

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, graphs: int) -> Tensor:
        """Logits ``[graphs, C]``; ``batch: [n]`` says which graph each node belongs to."""
        pooled = self._pool(F.relu(self.body(x, edge_index)), batch, graphs)
        logits: Tensor = self.head(F.dropout(pooled, self._dropout, self.training))
        return logits


class GraphTrainer(Learner):
    """One network on a set of graphs. The Fisher follows the reduce rule: the nodes of a graph are the shared positions of one term.

    Args:
        config: The run; its seed has been set by `seed_all`. ``sampling.batch_size`` counts graphs of a step, 0 for all.
        data: The graphs.
        split: Their split.
        device: Where to train.
    """

    sharing: ClassVar[str | None] = "reduce"

    def __init__(self, config: TrainConfig, data: GraphSet, split: GraphSplit, device: torch.device) -> None:
        options = config.model.options()
        body = build_model(options, data.features, options.hidden, edges="whole")
        model = PooledNet(body, options.hidden, data.classes, config.graphs.pooling, options.dropout).to(device)
        super().__init__(config, model, device)
        self.data: GraphSet = data
        self.split: GraphSplit = split
        self._size = config.sampling.batch_size or len(split.train)
        self._count(1)

    def distribute(self, group: object = None) -> Ranks:
        """See `Learner.distribute`; the graphs of each step are split over the ranks."""
        ranks = super().distribute(group)
        self._count(ranks.size)
        return ranks

    def terms(self) -> Terms:
        """Some training graphs, in an order of the epoch's own."""
        progress, ranks = self.progress, self.ranks
        order = torch.randperm(len(self.split.train), generator=generator_of(self.config.seed, 2, progress.epoch))
        part = slice(None) if ranks is None else slice(ranks.rank, None, ranks.size)
        chosen = self.split.train[order[progress.batch * self._size : (progress.batch + 1) * self._size][part]]
        batch = self._joined(chosen)
        logits = self._call(batch, len(chosen))
        return Terms(Categorical(logits).pooled(batch.batch), F.cross_entropy(logits, self.data.y[chosen].to(self.device)), len(chosen))

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Logits ``[graphs, C]`` of all graphs, without dropout, with the averaged weights if there are any."""
        self.model.eval()
        with self.average.shown():
            return torch.cat([self._call(self._joined(part), len(part)) for part in self._parts()])

    def evaluate(self) -> tuple[Measures, Measures, Measures]:
        """Measures of the training, validation and test graphs."""
        logits, y = self.predict().cpu(), self.data.y
        train, val, test = (measure(logits[part], y[part]) for part in (self.split.train, self.split.val, self.split.test))
        return train, val, test

    def table(self) -> str:
        """A row for each graph: its number, part, class, prediction and the probability of each class."""
        names = self.data.class_names or tuple(str(c) for c in range(self.data.classes))
        parts = {int(i): name for name in ("train", "val", "test") for i in getattr(self.split, name)}
        rows = [["graph", "part", "label", "predicted", *(f"p_{name}" for name in names)]]
        for i, p in enumerate(self.predict().softmax(-1).tolist()):
            best = max(range(len(p)), key=p.__getitem__)
            rows.append([str(i), parts[i], names[int(self.data.y[i])], names[best], *(f"{value:.6g}" for value in p)])
        return csv_text(rows)

    def _parts(self) -> Iterator[Tensor]:
        yield from torch.arange(len(self.data.y)).split(_EVALUATED)

    def _joined(self, chosen: Tensor) -> Any:
        return Batch.from_data_list([self.data.graphs[i] for i in chosen.tolist()]).to(self.device)

    def _call(self, batch: Any, graphs: int) -> Tensor:
        return check_logits(self.model(batch.x, batch.edge_index, batch.batch, graphs), graphs, self.data.classes)

    def _count(self, least: int) -> None:
        whole, rest = divmod(len(self.split.train), self._size)
        self.batches = whole + (rest >= least and rest > 0)
