"""The configuration of a run: every key of the YAML file and of the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from natgrad_apps import curvature as curvatures
from natgrad_apps import damping as dampings
from natgrad_apps import refresh as refreshes
from natgrad_apps import steps
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.damping.base import Damping
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.counting import FisherNodes, PseudoLabels
from natgrad_apps.graphs.features import Layout
from natgrad_apps.graphs.models import SUMS_FIRST, ModelOptions
from natgrad_apps.refresh.base import Refresh
from natgrad_apps.runner.hints import Range
from natgrad_apps.statistics.fisher import Fisher
from natgrad_apps.steps.base import StepRule

Positive = Annotated[int, Range(low=1)]
NonNegative = Annotated[int, Range(low=0)]
Rate = Annotated[float, Range(low=0, open_low=True)]
Share = Annotated[float, Range(low=0, high=1, open_high=True)]
Seed = Annotated[int, Range(low=0, high=2**31 - 1)]


@dataclass(frozen=True)
class DataConfig:
    """The graph and the sizes of random splits.

    Attributes:
        edges: Edge list of your own graph (CSV, TSV or Parquet with the columns source and target), for dataset table.
        nodes: Node table of your own graph (columns id and label, features, and optionally split or train, val, test), for dataset table.
        undirected: Whether each edge of your own list also counts in the other direction.
        normalize_features: Whether each node's features are divided by their sum; never those of ogbn sets.
        features: sparse, dense, or auto, which keeps features of public sets sparse where that is faster and the network can take them.
        inductive: Whether training sees only the training nodes and the edges between them.
        per_class: Training nodes of each class, for split random.
        val: Validation nodes in all, for split random.
        test: Test nodes in all, for split random; 0 takes all that are left.
        split_seed: Seed of random splits; null takes the seed of the run.
    """

    edges: str | None = None
    nodes: str | None = None
    undirected: bool = True
    normalize_features: bool = True
    features: Layout = "auto"
    inductive: bool = False
    per_class: Positive = 20
    val: NonNegative = 500
    test: NonNegative = 0
    split_seed: Seed | None = None


@dataclass(frozen=True)
class SamplingConfig:
    """Mini-batches of training nodes with sampled neighbourhoods.

    Attributes:
        batch_size: Training nodes (or links, or graphs) of a batch; 0 takes all of them, one step an epoch.
        fanouts: Neighbours drawn for each node, hop by hop, -1 for all; empty takes all of them, for as many hops as the model has layers.
    """

    batch_size: NonNegative = 0
    fanouts: list[Annotated[int, Range(low=-1)]] = field(default_factory=list)


@dataclass(frozen=True)
class LinksConfig:
    """For task links: which pairs of nodes are linked.

    Attributes:
        val: Share of the links that choose the epoch, with as many pairs that have none.
        test: Share of the links that are tested, with as many pairs that have none.
        decoder: The logit of a pair is the dot product of its codes, or an mlp of their elementwise product.
        width: Size of a code.
    """

    val: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.05
    test: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.1
    decoder: Literal["dot", "mlp"] = "dot"
    width: Positive = 16


@dataclass(frozen=True)
class GraphsConfig:
    """For task graphs: one class a graph.

    Attributes:
        train: Share of the graphs that are trained on.
        val: Share of the graphs that choose the epoch; the rest is tested.
        pooling: What makes one vector of a graph's nodes, mean or sum.
    """

    train: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.8
    val: Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)] = 0.1
    pooling: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        name: gcn, sage, gat, gin, appnp, sgc, gcnii, or module:Class for your own (called with d_in, classes and kwargs).
        hidden: Width of hidden layers (of each head for gat).
        layers: Number of graph layers; propagation steps for appnp and sgc.
        dropout: Probability, before each layer but the first.
        input_dropout: Probability on the input features; above 0 the first layer's inputs change every epoch.
        kwargs: Further arguments of your own class.
    """

    name: str = "gcn"
    hidden: Positive = 16
    layers: Positive = 2
    dropout: Share = 0.5
    input_dropout: Share = 0.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> ModelOptions:
        """As the models take it."""
        return ModelOptions(self.name, self.hidden, self.layers, self.dropout, self.input_dropout, self.kwargs)


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights are updated.

    Attributes:
        name: natural_gradient, adam or sgd.
        lr: Learning rate.
        momentum: Weight of the previous step, for natural_gradient and sgd.
        weight_decay: L2 coefficient added to the gradient, of every parameter.
        curvature: Approximation of the Fisher; gram_kfac keeps wide inputs of few nodes as rows.
        damping: Damping rule, or a number for exact Tikhonov damping.
        step: Step rule.
        refresh: When statistics are gathered and inverses recomputed.
        fisher: Fisher estimate, mc, exact, empirical is not offered: nodes without a label have none.
        fisher_nodes: Nodes whose terms make the Fisher; labelled, counted (those of the loss with their weights) or all.
        factorization: aggregated, or pre_aggregation for what the inner linear layers see.
        strict: Whether parameters without a layer adapter are an error.
    """

    name: Literal["natural_gradient", "adam", "sgd"] = "natural_gradient"
    lr: Rate = 0.03
    momentum: Share = 0.9
    weight_decay: Annotated[float, Range(low=0)] = 5e-4
    curvature: Curvature | str | Mapping[str, Any] = "gram_kfac"
    damping: Damping | float | str | Mapping[str, Any] = field(default_factory=lambda: {"name": "factored_tikhonov", "value": 0.01})
    step: StepRule | str | Mapping[str, Any] = field(default_factory=lambda: {"name": "kl_clip", "kl_clip": 0.01})
    refresh: Refresh | str | Mapping[str, Any] = field(
        default_factory=lambda: {"name": "periodic", "statistics_period": 10, "inverse_period": 10}
    )
    fisher: Fisher | str | Mapping[str, Any] = "mc"
    fisher_nodes: FisherNodes = "labelled"
    factorization: Literal["aggregated", "pre_aggregation"] = "aggregated"
    strict: bool = False

    def __post_init__(self) -> None:
        curvatures.build(self.curvature)
        if dampings.build(self.damping).adaptive:
            raise ConfigError("an adaptive damping compares losses of one batch, but dropout makes each forward pass another; use tikhonov")
        steps.build(self.step)
        refreshes.build(self.refresh)
        if Fisher.of(self.fisher).kind == "empirical":
            raise ConfigError("fisher 'empirical' needs a label of every node that counts; use mc or exact")


@dataclass(frozen=True)
class PseudoConfig:
    """Predicted labels for nodes without one, apart from the optimizer.

    Attributes:
        enabled: Whether there are any.
        gamma: Exponent of the schedule (t/T)^gamma of their weight; 0 keeps the full weight throughout.
        kind: hard takes the most probable class, soft the whole distribution.
        confidence: Nodes whose largest probability is below this are left out.
        predict: train predicts with dropout, from the forward pass of the step; eval without, at the cost of one more forward pass.
    """

    enabled: bool = False
    gamma: Annotated[float, Range(low=0)] = 5.0
    kind: Literal["hard", "soft"] = "hard"
    confidence: Share = 0.0
    predict: Literal["train", "eval"] = "train"

    def options(self) -> PseudoLabels:
        """As the counter takes it."""
        return PseudoLabels(self.enabled, self.gamma, self.kind, self.confidence, self.predict)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        task: nodes, links or graphs: what is classified.
        dataset: karate, Cora, CiteSeer, PubMed, Computers, Photo, CS, Physics, CoraFull, CoraML, CiteSeerFull, DBLP, PubMedFull,
            ogbn-arxiv, ogbn-products (by the package ogb), or table; for task graphs motifs, or tu:NAME for a set of the TU collection.
        split: auto, public, full, complete, random or shchur.
        data: Your own tables, and the sizes of random splits.
        model: The network.
        optimizer: How weights are updated.
        sampling: Mini-batches.
        links: Options of task links.
        graphs: Options of task graphs.
        pseudo_labels: Predicted labels for nodes without one.
        epochs: Epochs of the run, at most.
        patience: Epochs without a better validation loss after which a run ends; 0 never ends it.
        select: Whether the epoch reported is that of the lowest validation loss, the highest validation accuracy (the first such one), or
            the last one.
        average: Weight of the old value in a running average of the weights, which is then what is evaluated and reported; 0 for none.
        target: Validation accuracy whose first epoch is reported.
        checkpoint_every: Epochs between two checkpoints.
        seed: Seed of weights, dropout, sampled labels and random splits.
        device: Where the network lives; auto takes CUDA where there is one.
        threads: CPU threads of torch; null leaves torch's choice.
    """

    task: Literal["nodes", "links", "graphs"] = "nodes"
    dataset: str = "karate"
    split: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    links: LinksConfig = field(default_factory=LinksConfig)
    graphs: GraphsConfig = field(default_factory=GraphsConfig)
    pseudo_labels: PseudoConfig = field(default_factory=PseudoConfig)
    epochs: Positive = 200
    patience: NonNegative = 0
    select: Literal["loss", "accuracy", "last"] = "loss"
    average: Share = 0.0
    target: Share = 0.78
    checkpoint_every: Positive = 100
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Range(low=1, high=1024)] | None = None

    def __post_init__(self) -> None:
        if self.data.features == "sparse" and self.model.name in SUMS_FIRST:
            raise ConfigError(
                f"model {self.model.name!r} sums features over neighbours before it multiplies them, so they cannot stay sparse; set "
                "data.features to auto or dense, or take gcn, gat, appnp or gcnii"
            )
        if self.task != "nodes":
            self._check_task()
        elif self.sampling.batch_size:
            self._check_sampling()
        if self.data.inductive and self.pseudo_labels.enabled:
            raise ConfigError("pseudo-labels are for nodes that training sees without a label; with data.inductive it sees none")

    def _check_task(self) -> None:
        for name, wrong, legal in (
            ("split", self.split != "auto", f"auto: {self.task} are split by {self.task}.val and the seed"),
            ("pseudo_labels.enabled", self.pseudo_labels.enabled, "false: they are for nodes"),
            ("data.inductive", self.data.inductive, "false: it is for nodes"),
            ("sampling.fanouts", bool(self.sampling.fanouts), "empty: messages follow every link"),
            ("optimizer.fisher_nodes", self.optimizer.fisher_nodes != "labelled", "labelled: every term counts"),
        ):
            if wrong:
                raise ConfigError(f"with task {self.task}, {name} must be {legal}")
        if self.task == "graphs" and self.graphs.train + self.graphs.val >= 1:
            raise ConfigError(f"graphs.train + graphs.val must leave graphs for a test, got {self.graphs.train} + {self.graphs.val}")

    def _check_sampling(self) -> None:
        fanouts, model = self.sampling.fanouts, self.model
        if self.pseudo_labels.enabled:
            raise ConfigError("pseudo-labels are made of the whole graph; set sampling.batch_size to 0")
        if self.optimizer.fisher_nodes != "labelled":
            raise ConfigError(f"with batches the Fisher is that of the labelled nodes; got fisher_nodes {self.optimizer.fisher_nodes!r}")
        if model.name == "sgc":
            raise ConfigError(
                "sgc normalizes the edges of each batch, whose degrees are not the graph's; take gcn, sage, gin, gat or appnp"
            )
        if 0 in fanouts:
            raise ConfigError(f"each of sampling.fanouts must be >= 1, or -1 for all neighbours; got {fanouts}")
        if fanouts and ":" not in model.name and len(fanouts) < model.layers:
            raise ConfigError(
                f"sampling.fanouts has {len(fanouts)} hops, but {model.name} reads {model.layers}, one a layer; give so many or none at all"
            )
