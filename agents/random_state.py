"""The global generators' states as plain JSON values."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor


def capture(device: torch.device) -> dict[str, Any]:
    """States of torch's CPU generator, of torch's generator on `device` if that is a CUDA device, and of numpy's global generator.

    Actions are drawn from torch's generator of the device, the order of a rollout's transitions from numpy's.
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": _encode(torch.get_rng_state()),
        "numpy": {
            "name": name,
            "keys": base64.b64encode(np.asarray(keys, dtype="<u4").tobytes()).decode(),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators to a state from `capture`; a CUDA state is left out on another device."""
    torch.set_rng_state(_decode(state["torch"]))
    own = state["numpy"]
    keys = np.frombuffer(base64.b64decode(own["keys"]), dtype="<u4").astype(np.uint32)
    np.random.set_state((own["name"], keys, own["position"], own["has_gauss"], own["cached"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
