"""The pixel network: sizes, initialization, defaults and refusals."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from natgrad_apps.agents import ACKTR, ACKTRCnn, ACKTRCnnPolicy
from natgrad_apps.agents.config import AgentConfig
from natgrad_apps.errors import ConfigError

ATARI = spaces.Box(0, 255, (4, 84, 84), np.uint8)
ACTIONS = spaces.Discrete(6)


def rate(_: float) -> float:
    return 0.1


def test_sizes_for_atari_frames() -> None:
    network = ACKTRCnn(ATARI)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [(32, 8, 4), (64, 4, 2), (32, 3, 1)]
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    assert (linear.in_features, linear.out_features) == (32 * 7 * 7, 512)  # 84 -> 20 -> 9 -> 7
    assert network(torch.zeros(2, 4, 84, 84)).shape == (2, 512)
    assert network.features_dim == 512


def test_policy_has_linear_heads_and_orthogonal_weights() -> None:
    policy = ACKTRCnnPolicy(ATARI, ACTIONS, rate)
    extractor = policy.features_extractor
    assert isinstance(extractor, ACKTRCnn)
    hidden = extractor.linear[0]
    layers = ((hidden, 2**0.5), (policy.action_net, 0.01), (policy.value_net, 1.0))
    assert not list(policy.mlp_extractor.parameters())
    for module, gain in layers:
        assert isinstance(module, nn.Linear)
        weight = module.weight.detach()
        gram = weight @ weight.T
        torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), atol=1e-5, rtol=1e-4)
        assert not module.bias.detach().any()
    assert policy.value_net.in_features == 512


@pytest.mark.parametrize(
    ("kwargs", "extractor", "hidden"),
    [
        ({}, ACKTRCnn, 0),
        ({"net_arch": [16]}, ACKTRCnn, 2),
        ({"features_extractor_class": NatureCNN}, NatureCNN, 0),
        ({"features_extractor_kwargs": {"features_dim": 64}}, ACKTRCnn, 0),
    ],
)
def test_the_users_arguments_win(kwargs: dict[str, Any], extractor: type[nn.Module], hidden: int) -> None:
    policy = ACKTRCnnPolicy(ATARI, ACTIONS, rate, **kwargs)
    assert type(policy.features_extractor) is extractor
    assert sum(isinstance(m, nn.Linear) for m in policy.mlp_extractor.modules()) == hidden
    assert policy.features_dim == kwargs.get("features_extractor_kwargs", {}).get("features_dim", 512)


def test_the_command_offers_every_policy() -> None:
    assert list(get_args(get_type_hints(AgentConfig)["policy"])) == list(ACKTR.policy_aliases)


def test_smallest_image() -> None:
    assert ACKTRCnn(spaces.Box(0, 255, (1, 36, 36), np.uint8), features_dim=4).linear[0].in_features == 32
    with pytest.raises(ConfigError, match="at least 36 x 36 pixels, got 36 x 35"):
        ACKTRCnn(spaces.Box(0, 255, (1, 36, 35), np.uint8))


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(3), spaces.Box(0.0, 1.0, (1, 84, 84), np.float32)])
def test_what_is_no_image_is_refused(space: gym.Space[Any]) -> None:
    with pytest.raises(ConfigError, match="needs an image space"):
        ACKTRCnn(space)


def test_scaled_images_are_accepted_when_said_so() -> None:
    space = spaces.Box(0.0, 1.0, (1, 40, 40), np.float32)
    policy = ACKTRCnnPolicy(space, ACTIONS, rate, normalize_images=False, features_extractor_kwargs={"features_dim": 8})
    assert policy.features_extractor(torch.rand(2, 1, 40, 40)).shape == (2, 8)
