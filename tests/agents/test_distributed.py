"""Two processes that train one agent, each with its own environments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from natgrad_apps.agents import ACKTR
from natgrad_apps.errors import ConfigError
from tests.exactness.test_ranks import flat, on_two_ranks

OPTIONS: dict[str, Any] = {
    "step": {"name": "kl_trust_region", "radius": 1e-3},
    "critic_step": {"name": "kl_trust_region", "radius": 1e-2},
    "backtracking": {"kl_limit": 1e-3},
    "value_normalization": {},
}


def learn(rank: int) -> dict[str, Any]:
    env = make_vec_env("CartPole-v1", 2, seed=1000 * rank)
    model = ACKTR("MlpPolicy", env, n_steps=16, seed=rank, device="cpu", natural_gradient=OPTIONS)
    model.distribute()
    first = flat(model.policy)
    model.learn(320)
    seen = torch.from_numpy(model.rollout_buffer.observations.copy())
    scales = (model._value_variance, model.policy.state_dict()["value_net.scale"].item())
    return {"first": first, "weights": flat(model.policy), "observations": seen, "scales": scales}


@pytest.mark.slow
def test_ranks_share_their_weights_and_see_different_episodes(tmp_path: Path) -> None:
    mine, theirs = on_two_ranks(learn, tmp_path)
    assert torch.equal(mine["weights"], theirs["weights"])
    assert not torch.equal(mine["first"], mine["weights"])
    assert mine["scales"] == theirs["scales"]
    assert not torch.equal(mine["observations"], theirs["observations"])


def go_on(rank: int) -> dict[str, Any]:
    """Train alone, save, load the file on every rank and train together; the momentum goes along."""
    folder = Path(os.environ["NATGRAD_TEST_FOLDER"])
    model = ACKTR("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=7), n_steps=16, seed=3, device="cpu", natural_gradient={"momentum": 0.5})
    model.learn(160)  # the same on both ranks
    model.save(folder / f"{rank}.zip")
    loaded = ACKTR.load(folder / f"{rank}.zip", env=make_vec_env("CartPole-v1", 2, seed=1000 * rank), seed=rank)
    loaded.distribute()
    first = flat(loaded.policy)
    generator = loaded.optimizer.state_dict()["curvature"]["observer"]["generator"]
    loaded.learn(160, reset_num_timesteps=False)
    blocks = loaded.optimizer.preconditioner.blocks
    statistics = [moment.flatten() for block in blocks.values() for moment in block.state.moments.values()]
    return {
        "saved": flat(model.policy),
        "first": first,
        "weights": flat(loaded.policy),
        "statistics": torch.cat(statistics),
        "generator": generator,
        "steps": loaded.num_timesteps,
    }


@pytest.mark.slow
def test_a_loaded_agent_goes_on_with_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATGRAD_TEST_FOLDER", str(tmp_path))
    mine, theirs = on_two_ranks(go_on, tmp_path)
    assert torch.equal(mine["saved"], mine["first"])
    assert mine["steps"] == 320
    for name in ("first", "weights", "statistics"):
        assert torch.equal(mine[name], theirs[name])
    assert not torch.equal(mine["first"], mine["weights"])
    assert mine["generator"] is not None
    assert theirs["generator"] is None


def moments(rank: int) -> tuple[float, float]:
    model = ACKTR("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=rank), n_steps=16, seed=0, device="cpu")
    model.distribute()
    assert model.ranks is not None
    mean, std = model.ranks.moments(torch.arange(8.0)[4 * rank : 4 * rank + 4])
    return float(mean), float(std)


@pytest.mark.slow
def test_advantages_are_normalized_over_all_ranks(tmp_path: Path) -> None:
    for mean, std in on_two_ranks(moments, tmp_path):
        assert mean == 3.5
        assert std == pytest.approx(np.std(np.arange(8.0), ddof=1), rel=1e-6)  # float32


def test_without_a_process_group_the_error_says_what_to_do() -> None:
    model = ACKTR("MlpPolicy", "CartPole-v1", n_steps=16, device="cpu")
    assert model.ranks is None
    with pytest.raises(ConfigError, match=r"init_process_group.*torchrun"):
        model.distribute()
