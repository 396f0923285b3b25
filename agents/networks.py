"""The pixel network of ACKTR, and the CNN policy that uses it by default."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from natgrad_apps.errors import ConfigError


class ACKTRCnn(BaseFeaturesExtractor):
    """Three convolutions and one fully connected layer: 32 at 8x8/4, 64 at 4x4/2, 32 at 3x3/1, then `features_dim`; ReLU after each.

    The DQN Nature network (SB3's `NatureCNN`) has 64 channels in its third convolution. With 32 the input factor of the fully connected
    layer is 1569 instead of 3137 wide for 84x84 frames, so its factorization is 8 times cheaper, and the score does not suffer.

    Shapes: observations ``[N, channels, height, width]`` -> features ``[N, features_dim]``.
    Reference: Wu, Mansimov, Liao, Grosse & Ba, Scalable trust-region method for deep reinforcement learning using Kronecker-factored
    approximation, NeurIPS 2017, arXiv 1708.05144 (the network of the Atari experiments).

    Args:
        observation_space: An image space, channels first.
        features_dim: Width of the output.
        normalized_image: Whether the image is scaled to [0, 1] already; SB3 passes it.

    Raises:
        ConfigError: The space is no image space, or too small for the convolutions.
    """

    def __init__(self, observation_space: gym.Space[Any], features_dim: int = 512, normalized_image: bool = False) -> None:
        if not isinstance(observation_space, spaces.Box) or not is_image_space(
            observation_space, check_channels=False, normalized_image=normalized_image
        ):
            raise ConfigError(
                f"ACKTRCnn needs an image space [channels, height, width] with uint8 values in 0..255, got {observation_space}; "
                "use 'MlpPolicy' for vectors, or policy_kwargs={'normalize_images': False} for images that are scaled already"
            )
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        if min(height, width) < SMALLEST_IMAGE:
            raise ConfigError(
                f"ACKTRCnn needs images of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels, got {height} x {width}; resize them, or "
                "pass another features_extractor_class in policy_kwargs"
            )
        self.cnn = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 32, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            flat = self.cnn(torch.zeros(1, channels, height, width)).shape[1]
        self.linear = nn.Sequential(nn.Linear(flat, features_dim), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Features of a batch of images."""
        features: Tensor = self.linear(self.cnn(observations))
        return features


SMALLEST_IMAGE = 36
"""Side for which the last convolution has one output pixel."""


class ACKTRCnnPolicy(ActorCriticCnnPolicy):
    """SB3's CNN policy with `ACKTRCnn` as default extractor and linear heads on it.

    Args:
        observation_space: Space of the observations.
        action_space: Space of the actions.
        lr_schedule: Learning rate as a function of the progress remaining.
        **policy_kwargs: As in SB3; they win over the defaults.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], lr_schedule: Schedule, **policy_kwargs: Any
    ) -> None:
        policy_kwargs.setdefault("features_extractor_class", ACKTRCnn)
        if issubclass(policy_kwargs["features_extractor_class"], ACKTRCnn):
            # What SB3 does for its own NatureCNN only: no further layers, and no check of the range of images that are scaled already.
            if policy_kwargs.get("net_arch") is None:
                policy_kwargs["net_arch"] = []
            scaled = {"normalized_image": not policy_kwargs.get("normalize_images", True)}
            policy_kwargs["features_extractor_kwargs"] = {**scaled, **(policy_kwargs.get("features_extractor_kwargs") or {})}
        super().__init__(observation_space, action_space, lr_schedule, **policy_kwargs)
