"""Iterate averaging: an agent that learns with its policy and plays with the mean of that policy's iterates."""

from __future__ import annotations

import copy
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file

from natgrad_apps.agents.contextual import ContextualAlgorithm

AVERAGED = "averaged_policy"


class AveragedAlgorithm(ContextualAlgorithm):
    """Keeps ``m_k = m_{k-1} + w_k (theta_k - m_{k-1})``, ``w_k = 1 / (1 + rho (k - 1))``, of weights ``theta_k`` after update ``k``.

    Steps that are as long as a trust region allows go on moving the weights about a good policy, and some iterates are worse than their
    mean. With ``eta = 1 / rho - 1`` the weight is ``w_k = (eta + 1) / (eta + k)`` and, multiplied out, the share of ``theta_j`` in ``m_k``
    is proportional to ``Gamma(j + eta) / Gamma(j)``, which grows as ``j^eta``: the mean age of what ``m_k`` holds is about ``rho k``
    updates, for small ``rho``. So it follows a policy that learns fast in the beginning, looks back further later, and has no time scale
    of its own; a running mean with a constant decay either lags in the beginning or holds little in the end. ``rho = 1`` is the plain mean.

    Rollouts, and so learning, have the policy itself: training is the same to the bit with averaging and without it. `predict`, and with
    it every evaluation, has the mean. Masks and memories are those of the policy's class. The statistics of `PopArt` are those of the last
    iterate, so the critic of `averaged_policy` is no mean of critics.

    References: Polyak & Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 1992; these weights:
    Shamir & Zhang, Stochastic gradient descent for non-smooth optimization, ICML 2013, section 4. Martens & Grosse (arXiv 1503.05671)
    average the iterates of K-FAC with a constant decay.

    Attributes:
        averaged_policy: The policy that plays, a module of its own; None plays with `policy`.
    """

    averaged_policy: ActorCriticPolicy | None = None

    @property
    def playing_policy(self) -> ActorCriticPolicy:
        """The mean, or the policy itself where none is kept."""
        return self.policy if self.averaged_policy is None else self.averaged_policy

    def start_averaging(self) -> None:
        """Keep a mean from now on. The policy is new: it has made no forward pass, and its optimizer is SB3's."""
        self.averaged_policy = copy.deepcopy(self.policy)
        del self.averaged_policy.optimizer
        self.averaged_policy.requires_grad_(False)

    @torch.no_grad()
    def take_iterate(self, count: int, share: float) -> None:
        """Take the policy's weights into the mean that is kept.

        Args:
            count: Number ``k`` of this update, from 1.
            share: ``rho``, in (0, 1].
        """
        assert self.averaged_policy is not None
        mean, iterate = self.averaged_policy, self.policy
        torch._foreach_lerp_(list(mean.parameters()), list(iterate.parameters()), 1 / (1 + share * (count - 1)))
        for kept, new in zip(mean.buffers(), iterate.buffers(), strict=True):
            kept.copy_(new)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: torch.device | str = "auto") -> None:
        """As in SB3; saved weights without a mean begin a new one, and a saved mean is left out where none is kept."""
        if isinstance(load_path_or_dict, dict):
            saved = load_path_or_dict
        else:
            _, saved, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        kept = {name: state for name, state in saved.items() if name != AVERAGED or self.averaged_policy is not None}
        if self.averaged_policy is not None and "policy" in kept:
            kept.setdefault(AVERAGED, kept["policy"])
        super().set_parameters(kept, exact_match, device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, variables = super()._get_torch_save_params()
        return [*modules, *([] if self.averaged_policy is None else [AVERAGED])], variables
