r"""Link prediction: which pairs of nodes are linked, from the graph without some of its links.

An encoder gives each node ``z_i``; a decoder gives each pair the logit ``s_e`` of a link: ``z_u . z_v``, or an MLP of ``z_u * z_v``. The
likelihood terms are the ``M`` pairs, ``y_e ~ Bernoulli(sigmoid(s_e))``.

K-FAC when the loss sits on pairs. A weight ``W`` of the encoder is used at every node, ``s_i = W a_i``, and pair ``e`` has the gradient
``sum_i g_ei a_i^T`` with ``g_ei = d log p_e / d s_i``; for the last layer and the dot product ``g_eu = r_e z_v``, ``g_ev = r_e z_u`` and no
other, ``r_e = y_e - sigmoid(s_e)``. Its Fisher block is

    F = 1/M sum_e E[vec(sum_i g_ei a_i^T) vec(sum_i g_ei a_i^T)^T].

Nodes are the shared positions of the ``expand`` rule: products of different nodes of one pair are dropped, and ``F ~ A (x) G`` with ``A``
the mean of ``a_i a_i^T`` over nodes and ``G = 1/M sum_e sum_i E[g_ei g_ei^T]``. What capture sees is ``g_i = sum_e g_ei``. Terms are drawn
independently (or carry independent signs), so ``E[g_i g_i^T] = sum_e E[g_ei g_ei^T]``: the same estimate serves, without a pass for each
pair. In the decoder a pair is a row of its own, and the block of its last layer is exact pair by pair.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.graphs.learning import Learner
from natgrad_apps.graphs.models import WEIGHTED, build_model
from natgrad_apps.graphs.node_table import csv_text
from natgrad_apps.graphs.ranking import LinkMeasures, measure_links
from natgrad_apps.graphs.records import Terms
from natgrad_apps.graphs.sampling import generator_of
from natgrad_apps.likelihoods import Bernoulli
from natgrad_apps.ranks import Ranks


@dataclass(frozen=True)
class Pairs:
    """Pairs of nodes, ``index: [2, n]``, with ``labels: [n]``, 1 for a link."""

    index: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Pairs:
        """On a device."""
        return Pairs(self.index.to(device), self.labels.to(device))


@dataclass(frozen=True)
class LinkSplit:
    """Links that training sees, and pairs that choose the epoch and are tested.

    Attributes:
        train: Links, ``[2, n]``, each in one direction; messages follow them, and the loss asks for them.
        val: Other links, with as many pairs that have none.
        test: The same; messages follow the validation links too.
        seed: Of all draws.
        name: For results.
    """

    train: Tensor
    val: Pairs
    test: Pairs
    seed: int
    name: str = "links"

    def __str__(self) -> str:
        """In words, to stand beside every number."""
        val, test = (int(part.labels.sum()) for part in (self.val, self.test))
        sizes = f"{self.train.shape[1]} train, {val} validation, {test} test links"
        return f"links split: {sizes}, as many pairs without one, split seed {self.seed}"


def split_links(data: GraphData, val: float, test: float, seed: int) -> LinkSplit:
    """Split the links of an undirected graph by torch-geometric's `RandomLinkSplit`; torch's and Python's generators are left alone.

    Args:
        data: The graph.
        val: Share of the links.
        test: Share of the links.
        seed: Of the split and of the pairs without a link.

    Raises:
        ConfigError: A part would be empty.
    """
    plain = Data(edge_index=data.edge_index.cpu(), num_nodes=data.nodes)
    before = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            parts = RandomLinkSplit(val, test, is_undirected=True, add_negative_train_samples=False)(plain)
    except ValueError as error:
        raise ConfigError(f"the links of {data.name} cannot be split into {val} validation and {test} test links: {error}") from error
    finally:
        random.setstate(before)
    pairs = [Pairs(part.edge_label_index, part.edge_label.float()) for part in parts]
    for name, part in zip(("validation", "test"), pairs[1:], strict=True):
        if not 0 < float(part.labels.sum()) < len(part.labels):
            raise ConfigError(f"{data.name} is too small for {name} links and as many pairs without; raise links.val and links.test")
    return LinkSplit(pairs[0].index, pairs[1], pairs[2], seed)


class NoLinks:
    """Draws pairs of different nodes that are not among some known links.

    Args:
        links: ``[2, n]``, in any direction.
        nodes: Number of nodes.

    Raises:
        ConfigError: Almost every pair is a link.
    """

    def __init__(self, links: Tensor, nodes: int) -> None:
        self._nodes = nodes
        self._known = self._key(links.cpu()).unique()
        if len(self._known) > 0.9 * nodes * (nodes - 1) / 2:
            raise ConfigError("almost every pair of nodes is linked, so there are too few pairs without a link to learn from")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``[2, count]``; a pair may be drawn twice."""
        found: list[Tensor] = []
        missing = count
        while missing > 0:
            pairs = torch.randint(self._nodes, (2, missing + missing // 4 + 8), generator=generator)
            place = torch.searchsorted(self._known, self._key(pairs)).clamp_max(len(self._known) - 1)
            free = (pairs[0] != pairs[1]) & (self._known[place] != self._key(pairs))
            found.append(pairs[:, free][:, :missing])
            missing -= found[-1].shape[1]
        return torch.cat(found, 1)

    def _key(self, pairs: Tensor) -> Tensor:
        low, high = pairs.amin(0), pairs.amax(0)
        return low * self._nodes + high


class LinkNet(nn.Module):
    """An encoder of nodes and a decoder of pairs.

    Args:
        encoder: Gives ``[N, width]``.
        decoder: ``dot`` or ``mlp``.
        width: Of the codes.
    """

    def __init__(self, encoder: nn.Module, decoder: str, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) if decoder == "mlp" else None

    def forward(self, pairs: Tensor, graph: GraphData) -> Tensor:
        """Logits ``[n]`` of the pairs ``[2, n]``."""
        weights = () if graph.edge_weight is None else (graph.edge_weight,)
        z = self.encoder(graph.x, graph.edge_index, *weights)
        product = z[pairs[0]] * z[pairs[1]]
        logits: Tensor = product.sum(-1) if self.decoder is None else self.decoder(product).squeeze(-1)
        return logits


class LinkTrainer(Learner):
    """One network on the links of one graph; every step sends messages along all training links.

    Args:
        config: The run; its seed has been set by `seed_all`. ``sampling.batch_size`` counts links of a step, 0 for all.
        data: The graph.
        split: Its links.
        device: Where to train.
    """

    def __init__(self, config: TrainConfig, data: GraphData, split: LinkSplit, device: torch.device) -> None:
        width = config.links.width
        encoder = build_model(config.model.options(), data.x.shape[1], width, edges="weighted")
        super().__init__(config, LinkNet(encoder, config.links.decoder, width).to(device), device)
        self.data: GraphData = data.to(device)
        self.split: LinkSplit = split
        held = split.val.index[:, split.val.labels > 0]
        self._graphs = [_with_links(self.data, links, config.model.name) for links in (split.train, torch.cat([split.train, held], 1))]
        self._nowhere = NoLinks(split.train, data.nodes)
        self._size = config.sampling.batch_size or split.train.shape[1]
        self._count(1)
        # What the training part is measured on stays the same throughout.
        shown = self._with_others(split.train, generator_of(config.seed, 1))
        self._shown = [shown.to(device), split.val.to(device), split.test.to(device)]

    def distribute(self, group: object = None) -> Ranks:
        """See `Learner.distribute`; the links of each step are split over the ranks."""
        ranks = super().distribute(group)
        self._count(ranks.size)
        return ranks

    def terms(self) -> Terms:
        """Some training links, and as many pairs without a link, drawn anew."""
        progress, ranks = self.progress, self.ranks
        seed = self.config.seed
        order = torch.randperm(self.split.train.shape[1], generator=generator_of(seed, 2, progress.epoch))
        part = slice(None) if ranks is None else slice(ranks.rank, None, ranks.size)
        chosen = order[progress.batch * self._size : (progress.batch + 1) * self._size][part]
        source = generator_of(seed, 3, progress.epoch, progress.batch, 0 if ranks is None else ranks.rank)
        pairs = self._with_others(self.split.train[:, chosen], source).to(self.device)
        logits = self.model(pairs.index, self._graphs[0])
        return Terms(Bernoulli(logits), F.binary_cross_entropy_with_logits(logits, pairs.labels.to(logits)), len(pairs.labels))

    @torch.no_grad()
    def predict(self) -> list[Tensor]:
        """Logits of the training, validation and test pairs, without dropout, with the averaged weights if there are any."""
        self.model.eval()
        first, last = self._graphs
        with self.average.shown():
            return [self.model(pairs.index, graph) for pairs, graph in zip(self._shown, (first, first, last), strict=True)]

    def evaluate(self) -> tuple[LinkMeasures, LinkMeasures, LinkMeasures]:
        """Measures of the training, validation and test pairs."""
        train, val, test = (measure_links(own, pairs.labels) for own, pairs in zip(self.predict(), self._shown, strict=True))
        return train, val, test

    def table(self) -> str:
        """A row for each validation and test pair: part, the two nodes, label and probability."""
        rows = [["part", "source", "target", "label", "p_link"]]
        ids = self.data.node_ids
        for name, pairs, logits in zip(("val", "test"), self._shown[1:], self.predict()[1:], strict=True):
            ends = [[ids[i] if ids else str(i) for i in end] for end in pairs.index.tolist()]
            columns = zip(*ends, pairs.labels.long().tolist(), logits.sigmoid().tolist(), strict=True)
            rows += [[name, a, b, str(label), f"{p:.6g}"] for a, b, label, p in columns]
        return csv_text(rows)

    def _with_others(self, links: Tensor, generator: torch.Generator) -> Pairs:
        others = self._nowhere.draw(links.shape[1], generator)
        labels = torch.cat([torch.ones(links.shape[1]), torch.zeros(links.shape[1])])
        return Pairs(torch.cat([links, others], 1), labels)

    def _count(self, least: int) -> None:
        whole, rest = divmod(self.split.train.shape[1], self._size)
        self.batches = whole + (rest >= least and rest > 0)


def _with_links(data: GraphData, links: Tensor, model: str) -> GraphData:
    """The graph with messages along some links in both directions."""
    edges = torch.cat([links, links.flip(0)], 1).to(data.y.device)
    made = replace(data, edge_index=edges, edge_weight=None)
    return made.gcn_normalized() if model in WEIGHTED else made
