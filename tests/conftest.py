"""Fixtures of the whole suite: one thread, a fixed seed, and float64 where a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the global generator of torch before every test."""
    value = 20240607
    torch.manual_seed(value)
    return value


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
