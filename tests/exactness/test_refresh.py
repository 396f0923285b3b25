"""Which statistics and which inverses are used when: the schedule, and that a step between refreshes uses the last inverse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from natgrad_apps import KFAC, Periodic, Preconditioner, Staggered, Tikhonov
from natgrad_apps.likelihoods import Categorical
from natgrad_apps.refresh import Refresh

NAMES = [f"layer{i}" for i in range(5)]


@pytest.mark.parametrize("period", [1, 3, 5, 8])
@pytest.mark.parametrize("rule", [Periodic, Staggered])
def test_every_block_is_due_once_in_each_period(rule: type[Refresh], period: int) -> None:
    schedule = rule(inverse_period=period)
    for start in (0, period, 4 * period):
        due = [name for step in range(start, start + period) for name in schedule.blocks_due(step, NAMES)]
        assert sorted(due) == NAMES


def test_periodic_takes_all_blocks_at_once() -> None:
    schedule = Periodic(inverse_period=3)
    assert [len(schedule.blocks_due(step, NAMES)) for step in range(7)] == [5, 0, 0, 5, 0, 0, 5]


def test_staggered_spreads_the_blocks_evenly() -> None:
    assert [len(Staggered(inverse_period=5).blocks_due(step, NAMES)) for step in range(5)] == [1, 1, 1, 1, 1]
    assert [list(Staggered(inverse_period=10).blocks_due(step, NAMES)) for step in (0, 1, 2, 4)] == [["layer0"], [], ["layer1"], ["layer2"]]
    assert max(len(Staggered(inverse_period=3).blocks_due(step, NAMES)) for step in range(3)) == 2


@pytest.mark.parametrize("period", [1, 2, 3])
def test_statistics_period(period: int) -> None:
    schedule = Periodic(statistics_period=period)
    assert [schedule.statistics_due(step) for step in range(6)] == [step % period == 0 for step in range(6)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "schedule", [Periodic(1, 3), Staggered(1, 3), Staggered(1, 5)], ids=lambda s: f"{type(s).__name__}-{s.inverse_period}"
)
def test_inverses_change_when_and_only_when_a_block_is_due(schedule: Refresh) -> None:
    """The first refresh of every block is at its first statistics; afterwards the schedule decides."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    core = Preconditioner(model, KFAC(), damping=Tikhonov(0.1), fisher="exact", refresh=schedule)
    names = list(core.blocks)
    before: dict[str, Tensor] = {}
    for step in range(9):
        with core.capture():
            logits = model(torch.randn(8, 3))
            core.observe(Categorical(logits))
        core.update()
        now: dict[str, Tensor] = {name: core.multiply_power({name: torch.ones(core.blocks[name].spec.shape)}, -1.0)[name] for name in names}
        if step > 0:
            changed = {name for name in names if not torch.equal(now[name], before[name])}
            assert changed == set(schedule.blocks_due(step, names))
        before = now
