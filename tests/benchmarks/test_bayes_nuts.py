"""The comparison with NUTS: the flat network is the torch network, and the table says what was found."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.bayes_nuts import Problem, network, outputs, table


def test_the_flat_network_is_the_torch_network() -> None:
    data = Problem(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, 1), torch.randn(7, 3, dtype=torch.float64))
    model = network(data, 0)
    one, _, two = model
    assert isinstance(one, nn.Linear)
    assert isinstance(two, nn.Linear)
    first = torch.cat([one.weight, one.bias[:, None]], 1)
    w = torch.cat([first.flatten(), two.weight.flatten(), two.bias])
    # the same products in float64
    torch.testing.assert_close(outputs(w, data.elsewhere), model(data.elsewhere)[:, 0], rtol=1e-12, atol=1e-12)
    many = torch.stack([w, 2 * w])
    torch.testing.assert_close(outputs(many, data.elsewhere)[0], model(data.elsewhere)[:, 0], rtol=1e-12, atol=1e-12)


def test_the_table_has_paired_differences() -> None:
    def row(correlation: float) -> dict[str, float]:
        return {"correlation": correlation, "ratio": 1.0, "seconds": 2.0, "r_hat_max": 1.1, "r_hat_median": 1.0}

    results = [{"NUTS, second half against first": row(0.99), "noisy_kfac": row(0.9), "noisy_adam": row(a)} for a in (0.5, 0.7)]
    text = table(results)
    # differences 0.4 and 0.2: mean 0.3, standard error 0.1
    assert "| noisy_kfac | 0.900 ± 0.000 | 0.300 ± 0.100 | 2 of 2 | 1.000 ± 0.000 | 2.0 |" in text
    assert "| noisy_adam | 0.600 ± 0.100 |  |  | 1.000 ± 0.000 | 2.0 |" in text
