"""Predictions: what is aleatoric, what epistemic, and what is left untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from natgrad_apps.bayes import Classification, NoisyAdam, Regression, Variational
from natgrad_apps.bayes.prediction import ClassificationPrediction, RegressionPrediction, predict
from natgrad_apps.errors import ConfigError, ShapeError


def regression(outputs: int = 1) -> Variational:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, outputs))
    return Variational(model, method=NoisyAdam(), task=Regression(noise_precision=4.0), num_data=20)


def classification(outputs: int) -> Variational:
    return Variational(nn.Linear(2, outputs), method=NoisyAdam(), task=Classification(), num_data=20)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_regression_parts_by_hand() -> None:
    found = RegressionPrediction(torch.tensor([[1.0, 2.0], [3.0, 2.0]]).double(), torch.tensor(0.5).double())
    assert found.mean.tolist() == [2, 2]
    assert found.epistemic.tolist() == [1, 0]
    assert found.aleatoric.tolist() == [0.25, 0.25]
    assert found.std.tolist() == pytest.approx([math.sqrt(1.25), 0.5])


def test_quantiles_invert_the_distribution_function_of_the_mixture() -> None:
    mu = np.random.default_rng(0).normal(size=(7, 3)) * 4
    found = RegressionPrediction(torch.tensor(mu), torch.tensor(0.3, dtype=torch.float64))
    for level in (1e-4, 0.025, 0.5, 0.975):
        q = found.quantile(level).numpy()
        np.testing.assert_allclose(stats.norm.cdf(q, mu, 0.3).mean(0), level, atol=1e-10)
    with pytest.raises(ConfigError, match="must be in"):
        found.quantile(1.0)


def test_rescaling_moves_everything_into_target_units() -> None:
    found = RegressionPrediction(torch.randn(5, 3).double(), torch.tensor(0.5).double())
    scaled = found.rescaled(10.0, 3.0)
    torch.testing.assert_close(scaled.mean, found.mean * 3 + 10)
    torch.testing.assert_close(scaled.std, found.std * 3)
    torch.testing.assert_close(scaled.quantile(0.1), found.quantile(0.1) * 3 + 10)


def test_classification_parts_by_hand() -> None:
    # Two sure samples that disagree: all of log 2 is epistemic. Two that agree on 1/2: all of it is aleatoric.
    p = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]).double()
    found = ClassificationPrediction(p)
    assert found.entropy.tolist() == pytest.approx([math.log(2)] * 2)
    assert found.epistemic.tolist() == pytest.approx([math.log(2), 0])
    assert found.aleatoric.tolist() == pytest.approx([0, math.log(2)])


def test_samples_are_the_models_outputs_at_posterior_samples() -> None:
    vi, x = regression(), torch.randn(5, 2)
    found = predict(vi, x, 3, generator())
    g, expected = generator(), []
    vi.model.eval()
    for _ in range(3):
        with vi.sample_weights(g) as model, torch.no_grad():
            expected.append(model(x)[:, 0].double())
    assert isinstance(found, RegressionPrediction)
    torch.testing.assert_close(found.samples, torch.stack(expected))
    assert float(found.noise_std) == pytest.approx(0.5)
    assert not found.samples.requires_grad
    assert (found.epistemic > 0).all()


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_see_the_same_weights(batch_size: int) -> None:
    vi, x = regression(), torch.randn(5, 2)
    torch.testing.assert_close(predict(vi, x, 4, generator(), batch_size).samples, predict(vi, x, 4, generator()).samples)


def test_the_model_is_left_as_it_was() -> None:
    vi, x = regression(), torch.randn(5, 2)
    modules = list(vi.model.modules())
    vi.model.train()
    modules[-1].eval()
    before = {name: p.clone() for name, p in vi.model.state_dict().items()}
    predict(vi, x, 2)
    assert [m.training for m in modules] == [True] * (len(modules) - 1) + [False]
    for name, p in vi.model.state_dict().items():
        assert torch.equal(p, before[name])


def test_one_logit_is_the_second_class() -> None:
    found = predict(classification(1), torch.randn(6, 2), 3, generator())
    assert found.samples.shape == (3, 6, 2)
    torch.testing.assert_close(found.samples.sum(-1), torch.ones(3, 6).double())
    vi = classification(1)
    with torch.no_grad():
        next(p for name, p in vi.model.named_parameters() if name == "bias").add_(50.0)
    assert (predict(vi, torch.randn(6, 2), 3).mean[:, 1] > 0.99).all()


def test_several_logits_are_a_softmax() -> None:
    found = predict(classification(3), torch.randn(6, 2), 3, generator())
    assert isinstance(found, ClassificationPrediction)
    torch.testing.assert_close(found.mean.sum(1), torch.ones(6).double())
    torch.testing.assert_close(found.entropy, found.aleatoric + found.epistemic)


def test_bad_arguments_are_told() -> None:
    vi = regression()
    with pytest.raises(ConfigError, match="num_samples must be at least 1"):
        predict(vi, torch.randn(3, 2), 0)
    with pytest.raises(ConfigError, match="no row"):
        predict(vi, torch.randn(0, 2))
    with pytest.raises(ShapeError, match="one target"):
        predict(regression(2), torch.randn(3, 2), 2)
