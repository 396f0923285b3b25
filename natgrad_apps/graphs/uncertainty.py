"""A posterior over the weights of a node classifier, by noisy K-FAC.

It is that of `natgrad_apps.bayes.Variational` with the labelled nodes as likelihood terms. On few labels the Bayes posterior (temperature 1
of the KL divergence) collapses to the prior, so a cold one is used; `natgrad_apps.graphs.calibration` makes its probabilities honest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import natgrad_apps.graphs.layers  # noqa: F401  (registers the adapters of graph layers)
from natgrad_apps.bayes import Classification, NoisyKFAC, Prior, Variational
from natgrad_apps.bayes.prediction import ClassificationPrediction
from natgrad_apps.errors import ConfigError, check_positive
from natgrad_apps.graphs.data import GraphData
from natgrad_apps.steps.kl_clip import KLClip


@dataclass(frozen=True)
class PosteriorOptions:
    """How a posterior over the weights of a graph network is fitted.

    Attributes:
        method: Of `natgrad_apps.bayes`.
        temperature: Weight of the KL divergence to the prior; below 1 the posterior is cold.
        prior_precision: ``1 / eta`` of the normal prior of every weight.
        epochs: Full-batch steps.
        num_samples: Weights drawn for predictions.

    Raises:
        ConfigError: A value is not legal.
    """

    method: NoisyKFAC = field(
        default_factory=lambda: NoisyKFAC(lr=0.05, decay=0.9, momentum=0.9, damping=1e-3, inverse_period=10, step=KLClip(1e-2))
    )
    temperature: float = 0.05
    prior_precision: float = 10.0
    epochs: int = 100
    num_samples: int = 30

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        check_positive("prior_precision", self.prior_precision)
        for name in ("epochs", "num_samples"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


class LabelledNodes(nn.Module):
    """A node classifier whose output is that of some nodes, so that likelihood terms are labelled nodes.

    Args:
        net: Maps features ``[N, d]`` and ``edge_index`` to logits ``[N, C]``.
        nodes: Indices ``[M]``.
    """

    def __init__(self, net: nn.Module, nodes: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("nodes", nodes, persistent=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits ``[M, C]``."""
        logits: Tensor = self.net(x, edge_index)[self.nodes]
        return logits


class GraphPosterior:
    """A posterior over the weights of a node classifier.

    Args:
        net: The network; it holds the posterior mean afterwards.
        data: The graph.
        train: Indices of the labelled nodes.
        options: How it is fitted.
        seed: Of the weight samples.

    Raises:
        ConfigError: A training node has no label, or there is none.
    """

    def __init__(self, net: nn.Module, data: GraphData, train: Tensor, options: PosteriorOptions | None = None, seed: int = 0) -> None:
        if len(train) == 0 or bool((data.y[train] < 0).any()):
            raise ConfigError("a posterior needs training nodes, all with a label")
        self.options = options if options is not None else PosteriorOptions()
        self.data, self._y = data, data.y[train]
        self.variational = Variational(
            LabelledNodes(net, train),
            method=self.options.method,
            task=Classification(),
            num_data=len(train),
            prior=Prior(precision=self.options.prior_precision),
            temperature=self.options.temperature,
            seed=seed,
        )
        self._net = net

    def step(self) -> float:
        """One epoch; returns the objective before it, ``expected_nll + temperature * KL`` in nats of all labelled nodes."""
        self._net.train()
        inputs: tuple[Any, ...] = (self.data.x, self.data.edge_index)
        return float(self.variational.step(inputs, self._y).objective)

    def fit(self) -> list[float]:
        """All epochs; returns the objective of each."""
        return [self.step() for _ in range(self.options.epochs)]

    @torch.no_grad()
    def predict_mean(self) -> Tensor:
        """Log-probabilities ``[N, C]`` with the mean weights, float64."""
        training = self._net.training
        self._net.eval()
        logits: Tensor = self._net(self.data.x, self.data.edge_index)
        self._net.train(training)
        return logits.double().log_softmax(-1)

    @torch.no_grad()
    def predict(self, generator: torch.Generator | None = None) -> ClassificationPrediction:
        """Mixture over posterior samples for every node; aleatoric and epistemic parts in nats. Each sample sees the whole graph."""
        training = self._net.training
        self._net.eval()
        drawn = []
        try:
            for _ in range(self.options.num_samples):
                with self.variational.sample_weights(generator):
                    drawn.append(self._net(self.data.x, self.data.edge_index).double().softmax(-1))
        finally:
            self._net.train(training)
        return ClassificationPrediction(torch.stack(drawn))
