"""Posterior of a node classifier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from natgrad_apps.bayes import NoisyKFAC
from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs.data import load_public
from natgrad_apps.graphs.models import ModelOptions, build_model
from natgrad_apps.graphs.uncertainty import GraphPosterior, LabelledNodes, PosteriorOptions
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.preconditioner import Preconditioner

# Three nodes of each class.
TRAIN = torch.cat([torch.nonzero(load_public("karate").y == c).flatten()[:3] for c in range(4)])


def make(seed: int = 0, **options: object) -> tuple[nn.Module, GraphPosterior]:
    torch.manual_seed(seed)
    data = load_public("karate")
    net = build_model(ModelOptions(hidden=8, dropout=0.0), data.x.shape[1], data.classes)
    settings = PosteriorOptions(**{"prior_precision": 1.0, "epochs": 150, "num_samples": 16, **options})  # type: ignore[arg-type]
    return net, GraphPosterior(net, data, TRAIN, settings, seed=seed)


def test_the_posterior_learns_and_splits_its_uncertainty() -> None:
    net, posterior = make()
    objective = posterior.fit()
    assert objective[-1] < 0.5 * objective[0]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    prediction = posterior.predict(torch.Generator().manual_seed(1))
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters()), "the network holds the mean again"
    y = posterior.data.y
    assert (prediction.mean.argmax(-1) == y).double().mean() > 0.65  # the largest class has 38 %
    torch.testing.assert_close(prediction.aleatoric + prediction.epistemic, prediction.entropy, rtol=0, atol=1e-12)
    assert prediction.epistemic.max() > 1e-3
    again = posterior.predict(torch.Generator().manual_seed(1))
    assert torch.equal(again.samples, prediction.samples)


def test_a_hotter_posterior_is_less_sure() -> None:
    spread = []
    for temperature in (0.01, 1.0):
        _, posterior = make(temperature=temperature)
        posterior.fit()
        spread.append(posterior.predict(torch.Generator().manual_seed(0)).entropy.mean())
    assert spread[0] < spread[1]


def test_labelled_nodes_give_the_fisher_of_their_mean() -> None:
    """The diagonal entries of K-FAC's last-layer factor are those of the labelled nodes' output Fisher, not diluted by the others."""
    net, posterior = make()
    data = posterior.data
    core = Preconditioner(LabelledNodes(net, TRAIN), "kfac", fisher="exact", damping=1e-3)
    with core.capture():
        logits = core_logits = LabelledNodes(net, TRAIN)(data.x, data.edge_index)
        core.observe(Categorical(logits))
    core.update()
    p = core_logits.detach().softmax(-1)
    output_fisher = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0)
    name = [n for n in core.blocks if n.startswith("net")][-1]
    G = core.blocks[name].state.moments["G0"]
    torch.testing.assert_close(G, output_fisher.to(G), rtol=1e-4, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"epochs": 0}, {"num_samples": 1.5}, {"prior_precision": math.inf}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PosteriorOptions(**options)  # type: ignore[arg-type]


def test_a_training_node_without_label_is_refused() -> None:
    data = load_public("karate")
    data.y[3] = -1
    with pytest.raises(ConfigError, match="all with a label"):
        GraphPosterior(build_model(ModelOptions(), data.x.shape[1], data.classes), data, torch.tensor([0, 3]))
    assert isinstance(PosteriorOptions().method, NoisyKFAC)
