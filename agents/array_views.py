"""Arrays that share memory, found among the arrays of an environment's state.

A pickle stores each array by itself, so that a view would be a copy after loading, and what is written to the one would not show in the
other: such views are to be stored as views.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def find_views(arrays: Sequence[Array]) -> dict[int, Array]:
    """Arrays that overlap with others of the sequence, by their identity, and the array whose memory each is a view of.

    Args:
        arrays: Kept alive by the caller for as long as the identities are used.
    """
    groups: dict[int, list[Array]] = {}
    for array in arrays:
        if array.size:
            groups.setdefault(id(_root(array)), []).append(array)
    found: dict[int, Array] = {}
    for group in groups.values():
        if len(group) > 1 and _overlap(group):
            found |= {id(array): root for array in group if (root := _root(array)) is not array}
    return found


def is_foreign(array: Array) -> bool:
    """Whether an array is a view of memory that a library in C owns."""
    return type(_root(array).base).__name__ == "PyCapsule"


def _root(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _overlap(group: Iterable[Array]) -> bool:
    """Whether two of the arrays share memory; those whose ranges do not meet are passed over quickly."""
    ranges = sorted(((*_bounds(array), array) for array in {id(array): array for array in group}.values()), key=lambda entry: entry[0])
    for index, (_, end, array) in enumerate(ranges):
        for _, _, other in itertools.takewhile(lambda entry, end=end: entry[0] < end, ranges[index + 1 :]):  # type: ignore[misc]
            try:
                if np.shares_memory(array, other, max_work=1000):  # type: ignore[arg-type]  # numpy takes any number
                    return True
            except RuntimeError:  # numpy gave up
                return True
    return False


def _bounds(array: Array) -> tuple[int, int]:
    start = array.__array_interface__["data"][0]
    reach = [stride * (size - 1) for stride, size in zip(array.strides, array.shape, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize
