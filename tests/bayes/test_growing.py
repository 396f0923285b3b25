"""A data set that grows during the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from natgrad_apps.bayes import VOGN, DataSize, FullGaussian, NoisyKFAC, Prior, Regression, Variational
from natgrad_apps.bayes.sampling import Draws
from natgrad_apps.errors import ConfigError
from tests.bayes._dense import precision_matrix


@pytest.mark.parametrize("method", [FullGaussian(lr=1.0, decay=0.0), VOGN(decay=0.0), NoisyKFAC(inverse_period=1, decay=0.0)])
def test_the_posterior_has_the_number_of_rows_now(method: Any, float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a posterior that was built for 30 rows has after a step on them with the same generator state
    x, y = torch.randn(30, 2), torch.randn(30, 1)
    model = nn.Linear(2, 1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for rows in (10, 30):
        model.load_state_dict(start)
        vi = Variational(model, method=method, task=Regression(), num_data=DataSize(rows, 2.0), prior=Prior(3.0))
        vi.set_num_data(30)
        assert vi.num_data == 60
        monkeypatch.setattr(Draws, "weights", lambda _, posterior, *__: {name: value.clone() for name, value in posterior.mean.items()})
        vi.step(x, y)
        (part,) = vi.posterior.parts.values()
        found.append(precision_matrix(part.normal))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_batch_may_be_as_large_as_the_grown_data() -> None:
    vi = Variational(nn.Linear(2, 1), method=VOGN(), task=Regression(), num_data=4)
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    with pytest.raises(ConfigError, match="more than num_data=4"):
        vi.step(x, y)
    vi.set_num_data(6)
    vi.step(x, y)
    with pytest.raises(ConfigError, match="integer >= 1"):
        vi.set_num_data(0)
