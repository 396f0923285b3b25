"""The policies that an agent can be given by name."""

from __future__ import annotations

import warnings

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from natgrad_apps.agents.masking import METHOD, MaskableCnnPolicy, MaskableMlpPolicy, MaskableMultiInputPolicy, MaskedPolicy
from natgrad_apps.agents.networks import ACKTRCnnPolicy
from natgrad_apps.agents.recurrent import (
    CnnLstmPolicy,
    MaskableCnnLstmPolicy,
    MaskableMlpLstmPolicy,
    MaskableMultiInputLstmPolicy,
    MlpLstmPolicy,
    MultiInputLstmPolicy,
)

POLICIES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ACKTRCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
    "MlpLstmPolicy": MlpLstmPolicy,
    "CnnLstmPolicy": CnnLstmPolicy,
    "MultiInputLstmPolicy": MultiInputLstmPolicy,
    "MaskableMlpPolicy": MaskableMlpPolicy,
    "MaskableCnnPolicy": MaskableCnnPolicy,
    "MaskableMultiInputPolicy": MaskableMultiInputPolicy,
    "MaskableMlpLstmPolicy": MaskableMlpLstmPolicy,
    "MaskableCnnLstmPolicy": MaskableCnnLstmPolicy,
    "MaskableMultiInputLstmPolicy": MaskableMultiInputLstmPolicy,
}


def check_masks(policy: ActorCriticPolicy, env: VecEnv | None) -> None:
    """Warn if a policy ignores the masks that the environment offers.

    Raises:
        ConfigError: It asks for masks that the environment does not offer.
    """
    if env is None:
        return
    if isinstance(policy, MaskedPolicy):
        policy.require_masks(env)
    elif env.has_attr(METHOD):
        warnings.warn(
            f"the environment says by {METHOD}() which actions are legal, but {type(policy).__name__} does not ask; use "
            "'MaskableMlpPolicy' or its like",
            UserWarning,
            stacklevel=4,
        )
