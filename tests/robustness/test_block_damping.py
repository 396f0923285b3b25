"""What the applications that are no optimizers need of the core: damping by block, what was refreshed, and taking a batch back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import EKFAC, KFAC, Diagonal, Exact, FactoredTikhonov, Fisher, Periodic, Preconditioner, Tikhonov
from natgrad_apps.curvature.base import Curvature
from natgrad_apps.damping.base import Damping
from natgrad_apps.likelihoods import Categorical
from tests._feed import dense, feed

pytestmark = pytest.mark.usefixtures("float64")


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)), torch.randn(7, 3)


@pytest.mark.parametrize("curvature", [KFAC(), EKFAC(), Diagonal(), Exact()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("rule", [Tikhonov, FactoredTikhonov])
def test_a_block_with_its_own_damping_is_that_of_a_preconditioner_with_it(curvature: Curvature, rule: type[Damping]) -> None:
    def fed(common: float, own: dict[str, Tensor]) -> Preconditioner:
        model, x = network()
        preconditioner = Preconditioner(model, curvature, damping=rule(common), fisher=Fisher("exact"))
        preconditioner.block_damping = own
        return feed(preconditioner, model, x, Categorical)

    shared = torch.tensor(0.7)
    mixed = fed(0.1, {"0": shared, "2": shared})
    small, large = fed(0.1, {}), fed(0.7, {})
    for name, same in (("0", large), ("2", large), ("4", small)):
        # the same numbers through the same operations; batches of another size may round differently
        torch.testing.assert_close(dense(mixed, name), dense(same, name), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mixed.logdet()[name], same.logdet()[name], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(dense(small, "0"), dense(large, "0"))


def test_refreshed_names_what_the_last_update_factorized() -> None:
    model, x = network()
    preconditioner = Preconditioner(model, KFAC(), refresh=Periodic(1, 2))
    assert not preconditioner.known("0")
    found = []
    for _ in range(3):
        feed(preconditioner, model, x, Categorical)
        found.append(set(preconditioner.refreshed))
    assert found == [{"0", "2", "4"}, set(), {"0", "2", "4"}]
    assert preconditioner.known("0")


def test_a_discarded_batch_leaves_no_trace_in_the_averages() -> None:
    results = []
    for extra in (False, True):
        model, x = network()
        preconditioner = Preconditioner(model, KFAC(), fisher=Fisher("exact"))
        if extra:
            with preconditioner.capture():
                preconditioner.observe(Categorical(model(100 * x)))
            preconditioner.discard()
        results.append(dense(feed(preconditioner, model, x, Categorical), "0"))
    assert torch.equal(results[0], results[1])
