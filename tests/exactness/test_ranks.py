"""Two processes that train one model: equal to the bit, and equal to one process with the whole batch."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from natgrad_apps import EKFAC, KFAC, Exact, KLTrustRegion, NaturalGradient, Periodic
from natgrad_apps.errors import ConfigError
from natgrad_apps.likelihoods import Categorical

STEPS = 4


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(12, 1, 6, 6, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)


def make(model: nn.Module, **options: Any) -> NaturalGradient:
    settings: dict[str, Any] = {"fisher": "exact", "refresh": Periodic(1, 2), "lr": 0.5, "momentum": 0.9, "step": KLTrustRegion(1e-2)}
    return NaturalGradient(model, KFAC(), damping=1e-2, **{**settings, **options})


def train(model: nn.Module, optimizer: NaturalGradient, part: slice, poison: bool = False) -> None:
    for step in range(STEPS):
        x, y = (t[part] for t in batch(step))
        with optimizer.capture():
            logits = model(x)
            optimizer.observe(Categorical(logits))
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        (loss * (float("nan") if poison and step == 1 else 1.0)).backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(rank: int, task: Callable[..., Any], port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.save(task(rank), Path(out) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def on_two_ranks(task: Callable[..., Any], folder: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(worker, args=(task, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def halves(rank: int) -> Tensor:
    model = network(seed=rank)  # different beginnings: distribute() gives both those of rank 0
    optimizer = make(model)
    optimizer.distribute()
    train(model, optimizer, slice(6 * rank, 6 * rank + 6))
    return flat(model)


def sampled(rank: int) -> Tensor:
    model = network(seed=0)
    optimizer = make(model, fisher="mc")
    optimizer.distribute()
    train(model, optimizer, slice(6 * rank, 6 * rank + 6))
    return flat(model)


def one_is_not_a_number(rank: int) -> dict[str, Any]:

    warnings.simplefilter("ignore")
    model = network(seed=0)
    optimizer = make(model)
    optimizer.distribute()
    train(model, optimizer, slice(6 * rank, 6 * rank + 6), poison=rank == 1)
    return {"weights": flat(model), "skipped": int(optimizer.preconditioner.skipped_steps)}


def different_layers(rank: int) -> str:
    model = network(seed=0)
    optimizer = make(model)
    optimizer.distribute()
    x, _ = batch(0)
    with optimizer.capture():
        logits = model(x) if rank == 0 else model[2:](model[:2](x).detach())
        optimizer.observe(Categorical(logits))
    logits.square().sum().backward()
    with pytest.raises(ConfigError) as caught:
        optimizer.step()
    return str(caught.value)


@pytest.mark.slow
def test_two_ranks_are_equal_to_the_bit_and_to_one_process(tmp_path: Path) -> None:
    first, second = on_two_ranks(halves, tmp_path)
    assert torch.equal(first, second)
    model = network(seed=0)
    train(model, make(model), slice(None))
    # sums in another order, through four steps with inverses at a damping of 0.01
    torch.testing.assert_close(first, flat(model), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_sampled_targets_differ_between_ranks_and_weights_do_not(tmp_path: Path) -> None:
    first, second = on_two_ranks(sampled, tmp_path)
    assert torch.equal(first, second)


@pytest.mark.slow
def test_a_gradient_that_is_no_number_on_one_rank_rejects_the_step_on_all(tmp_path: Path) -> None:
    first, second = on_two_ranks(one_is_not_a_number, tmp_path)
    assert first["skipped"] == second["skipped"] == 1
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()


@pytest.mark.slow
def test_different_layers_are_an_error_on_every_rank(tmp_path: Path) -> None:
    for message in on_two_ranks(different_layers, tmp_path):
        assert "differ between rank 0 and rank 1" in message
        assert "0" in message


def test_what_cannot_be_distributed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no process group"):
        make(network(0)).distribute()
    with pytest.raises(ConfigError, match=r"curvature 'ekfac' .*use 'kfac'"):
        NaturalGradient(network(0), EKFAC()).distribute()


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_group_of_one_changes_nothing() -> None:
    results = []
    for group in (False, True):
        model = network(seed=0)
        optimizer = NaturalGradient(model, Exact(), fisher="mc", damping=1e-2, lr=0.1)
        if group:
            ranks = optimizer.distribute()
            assert (ranks.size, ranks.rank) == (1, 0)
        train(model, optimizer, slice(None))
        results.append(flat(model))
        if group:
            before = flat(model)
            optimizer.distribute()  # again, with statistics
            assert torch.equal(flat(model), before)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)
