"""Recurrent policies: an LSTM between the features of an observation and the heads, which remembers what the episode has shown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from natgrad_apps.agents.context import Context, ContextualPolicy, State
from natgrad_apps.agents.masking import MaskedPolicy
from natgrad_apps.agents.networks import ACKTRCnn
from natgrad_apps.errors import ConfigError, check_positive


class LSTMExtractor(BaseFeaturesExtractor):
    """Features of an observation, then an LSTM over the steps of each environment, whose memory is emptied where an episode begins.

    With ``k_t = 0`` where an episode begins and 1 elsewhere, ``h_t, c_t = LSTM(features_t, (k_t h_{t-1}, k_t c_{t-1}))``. The LSTM is
    torch's and runs over whole stretches between the steps at which some episode begins. Gradients reach back to the first step of a pass.

    Shapes: observations of ``T * N`` rows ``t * N + n`` -> ``[T * N, hidden]``; memory ``[2, layers, N, hidden]``, hidden state and cell.

    Args:
        observation_space: Space of the observations.
        inner: Class of the extractor below the LSTM.
        inner_kwargs: Its arguments.
        hidden_size: Units of each layer.
        num_layers: Layers of the LSTM.

    Attributes:
        after: Memory after the last pass; None before the first.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        inner: type[BaseFeaturesExtractor] = FlattenExtractor,
        inner_kwargs: dict[str, Any] | None = None,
        hidden_size: int = 64,
        num_layers: int = 1,
    ) -> None:
        super().__init__(observation_space, hidden_size)
        self.inner = inner(observation_space, **(inner_kwargs or {}))
        self.lstm = nn.LSTM(int(self.inner.features_dim), hidden_size, num_layers)
        self.after: Tensor | None = None
        self._before: Tensor | None = None
        self._starts: Tensor | None = None

    def begin(self, starts: Tensor | None, before: Tensor | None) -> None:
        """Say what the next pass continues.

        Args:
            starts: ``[T, N]`` on the CPU, whether an episode begins; None for one step of every row.
            before: Memory before the first step; None for an empty one.
        """
        self._starts, self._before, self.after = starts, before, None

    def forward(self, observations: PyTorchObs) -> Tensor:
        """Outputs of the last layer."""
        rows: Tensor = self.inner(observations)
        starts = torch.zeros(1, len(rows), dtype=torch.bool) if self._starts is None else self._starts
        steps, count = starts.shape
        memory = rows.new_zeros(2, self.lstm.num_layers, count, self.lstm.hidden_size) if self._before is None else self._before.to(rows)
        sequence = rows.reshape(steps, count, -1)
        cuts = [0, *(starts[1:].any(1).nonzero().flatten() + 1).tolist(), steps]
        outputs = []
        for first, end in pairwise(cuts):
            begun = starts[first].to(rows.device).reshape(1, 1, -1, 1)
            h, c = memory.masked_fill(begun, 0.0)
            output, (h, c) = self.lstm(sequence[first:end], (h, c))
            memory = torch.stack([h, c])
            outputs.append(output)
        self.after = memory.detach()
        return torch.cat(outputs).flatten(0, 1)


class RecurrentPolicy(ContextualPolicy):
    """An actor-critic policy over the memory of an LSTM.

    With ``share_features_extractor=True``, SB3's default, actor and critic share one LSTM and learn it together, else each has its own.
    Memory is carried from one rollout to the next, and an update propagates through its whole rollout, ``n_steps``. Each step is a call
    of the LSTM's matrices (`natgrad_apps.layers.recurrent`), so K-FAC treats steps as independent, as it does in the layers below the
    LSTM, whose rows are steps.

    Args:
        observation_space: Space of the observations.
        action_space: Space of the actions.
        lr_schedule: Learning rate as a function of the progress remaining.
        lstm_hidden_size: Units of each layer of the LSTM.
        n_lstm_layers: Its layers.
        **kwargs: Arguments of SB3's `ActorCriticPolicy`; ``features_extractor_class`` is the extractor below the LSTM.

    Raises:
        ConfigError: A size is not legal.
    """

    inner: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        lr_schedule: Schedule,
        lstm_hidden_size: int = 64,
        n_lstm_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        for name, size in (("lstm_hidden_size", lstm_hidden_size), ("n_lstm_layers", n_lstm_layers)):
            check_positive(name, size)
            if not isinstance(size, int):
                raise ConfigError(f"{name} must be a whole number, got {size!r}")
        self._own_arguments = {
            "lstm_hidden_size": lstm_hidden_size,
            "n_lstm_layers": n_lstm_layers,
            "features_extractor_class": kwargs.pop("features_extractor_class", self.inner),
            "features_extractor_kwargs": kwargs.pop("features_extractor_kwargs", None) or {},
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=LSTMExtractor,
            features_extractor_kwargs={
                "inner": self._own_arguments["features_extractor_class"],
                "inner_kwargs": self._own_arguments["features_extractor_kwargs"],
                "hidden_size": lstm_hidden_size,
                "num_layers": n_lstm_layers,
            },
            **kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._own_arguments}

    @property
    def extractors(self) -> list[LSTMExtractor]:
        """The one that actor and critic share, or the actor's and the critic's."""
        both = [self.pi_features_extractor] if self.share_features_extractor else [self.pi_features_extractor, self.vf_features_extractor]
        return [extractor for extractor in both if isinstance(extractor, LSTMExtractor)]

    def receive(self, context: Context) -> None:
        """Keep the context, and give each LSTM its memory."""
        super().receive(context)
        for i, extractor in enumerate(self.extractors):
            extractor.begin(context.starts, None if context.states is None else context.states[i])

    def initial_states(self, count: int) -> Tensor:
        """Zeros."""
        lstm = self.extractors[0].lstm
        return torch.zeros(len(self.extractors), 2, lstm.num_layers, count, lstm.hidden_size, device=self.device)

    def states_after(self) -> Tensor | None:
        """Memory after the last pass; that of an LSTM which did not take part stays."""
        before = self.context.states
        assert before is not None
        parts = [before[i] if extractor.after is None else extractor.after for i, extractor in enumerate(self.extractors)]
        return torch.stack(parts)

    def pack_state(self) -> State | None:
        """Hidden state and cell of the actor's LSTM, ``[layers, N, hidden]`` each, as in sb3-contrib."""
        states = self.states_after()
        assert states is not None
        return tuple(part.cpu().numpy() for part in states[0])

    def unpack_state(self, state: State | None, count: int) -> Tensor:
        """Inverse of `pack_state`.

        Raises:
            ConfigError: The state is of another policy or of another number of environments.
        """
        states = self.initial_states(count)
        if state is None:
            return states
        given = [np.shape(part) for part in state]
        if given != [tuple(part.shape) for part in states[0]]:
            raise ConfigError(
                f"predict(state=...) takes what the last call returned, two arrays {tuple(states.shape[2:])} for {count} observations; got "
                f"{given}"
            )
        for target, part in zip(states[0], state, strict=True):
            target.copy_(torch.as_tensor(part))
        return states


class MlpLstmPolicy(RecurrentPolicy, ActorCriticPolicy):
    """For vectors."""


class CnnLstmPolicy(RecurrentPolicy, ActorCriticPolicy):
    """For pixels: `ACKTRCnn`, the LSTM, and linear heads."""

    inner: ClassVar[type[BaseFeaturesExtractor]] = ACKTRCnn

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], lr_schedule: Schedule, **policy_kwargs: Any
    ) -> None:
        if policy_kwargs.get("net_arch") is None:
            policy_kwargs["net_arch"] = []
        if issubclass(policy_kwargs.setdefault("features_extractor_class", self.inner), ACKTRCnn):
            scaled = {"normalized_image": not policy_kwargs.get("normalize_images", True)}
            policy_kwargs["features_extractor_kwargs"] = {**scaled, **(policy_kwargs.get("features_extractor_kwargs") or {})}
        super().__init__(observation_space, action_space, lr_schedule, **policy_kwargs)


class MultiInputLstmPolicy(RecurrentPolicy, ActorCriticPolicy):
    """For dictionaries of observations."""

    inner: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor


class MaskableMlpLstmPolicy(MaskedPolicy, MlpLstmPolicy):
    """For vectors, over legal actions."""


class MaskableCnnLstmPolicy(MaskedPolicy, CnnLstmPolicy):
    """For pixels, over legal actions."""


class MaskableMultiInputLstmPolicy(MaskedPolicy, MultiInputLstmPolicy):
    """For dictionaries of observations, over legal actions."""
