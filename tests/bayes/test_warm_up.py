"""A temperature that rises: the way there, and that the end is the same posterior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps.bayes import FullGaussian, NoisyKFAC, Partial, PointEstimate, Prior, Regression, Variational, WarmUp
from natgrad_apps.bayes.config import FitConfig, InferenceConfig, RecipeConfig
from natgrad_apps.bayes.fitted import Fitted, Scales, Schema
from natgrad_apps.errors import ConfigError
from tests.bayes._dense import precision_matrix

pytestmark = pytest.mark.usefixtures("float64")


def linear_regression(temperature: float | WarmUp) -> tuple[Variational, Tensor, Tensor]:
    x = torch.randn(30, 2)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(30, 1)
    method = FullGaussian(lr=1.0, decay=0.5)
    vi = Variational(nn.Linear(2, 1), method=method, task=Regression(4.0), num_data=30, prior=Prior(1.5), temperature=temperature)
    return vi, x, y


def test_it_rises_geometrically_to_the_end_and_stays() -> None:
    rising = WarmUp(0.01, steps=4, end=0.16)
    # 0.16 / 0.01 = 2^4 in four steps: a factor of 2 each
    assert [rising.at(t) for t in range(6)] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.16], rel=1e-12)
    assert rising.at(4) == 0.16
    assert WarmUp(end=0.7).at(0) == 0.7


def test_the_posterior_of_the_end_is_that_of_a_constant_temperature() -> None:
    vi, x, y = linear_regression(WarmUp(0.01, steps=10))
    for step in range(50):
        info = vi.step(x, y)
        # nelbo never has a temperature, the objective has that of its step
        torch.testing.assert_close(info.objective, info.expected_nll + WarmUp(0.01, steps=10).at(step) * info.kl, rtol=1e-12, atol=0)
    rows = torch.cat([x, torch.ones(30, 1)], 1)
    (part,) = vi.posterior.parts.values()
    # 40 steps at temperature 1: what is left of the curvature before them has the weight 2^-40 = 1e-12
    expected = 4.0 * rows.mT @ rows + 1.5 * torch.eye(3)
    torch.testing.assert_close(precision_matrix(part.normal), expected, rtol=1e-9, atol=1e-9)


def test_the_covariance_has_the_temperature_of_its_step() -> None:
    vi, x, y = linear_regression(WarmUp(0.01, steps=1000, end=100.0))
    for _ in range(501):
        vi.step(x, y)
    rows = torch.cat([x, torch.ones(30, 1)], 1)
    (part,) = vi.posterior.parts.values()
    # step 500 is half of the way between 0.01 and 100: temperature 1; the running curvature does not depend on the temperature
    torch.testing.assert_close(precision_matrix(part.normal), 4.0 * rows.mT @ rows + 1.5 * torch.eye(3), rtol=1e-9, atol=1e-9)


def test_a_resumed_warm_up_is_bit_equal() -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (
        Variational(m, method=NoisyKFAC(lr=0.1), task=Regression(), num_data=20, temperature=WarmUp(0.1, steps=8)) for m in models
    )
    for _ in range(3):
        first.step(x, y)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        ours, theirs = first.step(x, y), second.step(x, y)
        assert torch.equal(ours.objective, theirs.objective)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_weights_outside_the_posterior_follow_it() -> None:
    """Without data to fit, the step of the first layer has the sign of its decay, ``temperature * precision / N``."""
    first, last = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    model = nn.Sequential(first, last)
    nn.init.zeros_(last.weight)
    partial = Partial(model, ["1"], PointEstimate(precision=5.0))
    vi = Variational(partial, method=NoisyKFAC(lr=0.0), task=Regression(), num_data=10, temperature=WarmUp(0.1, steps=5))
    before = first.weight.detach().clone()
    vi.step(torch.zeros(4, 2), torch.zeros(4, 1))
    # inputs of zero give no gradient, so Adam's average after a step is (1 - beta1) times the decay term at temperature 0.1
    moment = vi.state_dict()["points"]["adam"][0]["exp_avg"]
    torch.testing.assert_close(moment, 0.1 * before * 5.0 * 0.1 / 10, rtol=1e-12, atol=0)


def test_the_recipe_warms_up_for_its_share_of_the_steps() -> None:
    inference = InferenceConfig(temperature=0.5, warm_up=0.25, warm_up_start=0.1)
    recipe = RecipeConfig(inference=inference, training=FitConfig(epochs=2, batch_size=10))
    schema = Schema("t", ("a",), "y", ("no", "yes"), 100, None)
    empty = Fitted(schema, Scales.from_dict({"x": {"mean": [0.0], "scale": [1.0]}, "y": None}), recipe, seed=0)
    # 2 epochs of 10 batches: 20 steps, 5 of warm-up
    assert empty.vi._warm_up == WarmUp(0.05, 5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "first temperature"),
        ({"end": -1.0}, "temperature"),
        ({"steps": -1}, "steps of the warm-up"),
        ({"steps": 1.5}, "steps"),
    ],
)
def test_illegal_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WarmUp(**options)  # type: ignore[arg-type]
