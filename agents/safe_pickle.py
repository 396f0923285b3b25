"""Pickles of environment states that are read without running code that they name.

Environments keep arbitrary objects in their attributes, so their states are pickles. A pickle names functions and classes to call; here
only containers, arrays and random generators may be named, simulator states, and classes that the packages of the environment's own
layers define. Everything else, functions above all, is refused.
"""

from __future__ import annotations

import inspect
import io
import pickle
import sys
from collections.abc import Collection
from typing import Any

_NAMES = frozenset(
    {
        *(f"builtins.{name}" for name in ("set", "frozenset", "complex", "bytearray", "slice", "range")),
        *(f"collections.{name}" for name in ("deque", "OrderedDict", "defaultdict", "Counter")),
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
        ),
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.random._pickle.__{name}_ctor" for name in ("generator", "bit_generator", "randomstate")),
        *(f"numpy.random._{kind.lower()}.{kind}" for kind in ("PCG64", "MT19937", "Philox", "SFC64")),
        "numpy.random.bit_generator.SeedSequence",
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "numpy.random._generator.Generator",
        "ale_py._ale_py.ALEState",
        "mujoco._structs.MjData",
        "mujoco._structs.MjModel",
    }
)


def dumps(value: Any) -> bytes:
    """Pickle a value."""
    return pickle.dumps(value, protocol=5)


def loads(data: bytes, packages: Collection[str]) -> Any:
    """Unpickle a value.

    Args:
        data: The pickle.
        packages: Top-level packages whose classes may be named.

    Raises:
        pickle.UnpicklingError: It names something else.
    """
    return _Unpickler(io.BytesIO(data), packages).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, packages: Collection[str]) -> None:
        super().__init__(file)
        self._packages = packages

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _NAMES or (module == "numpy.dtypes" and name.endswith("DType")):
            return super().find_class(module, name)
        if module.partition(".")[0] in self._packages and module in sys.modules and "." not in name:
            found = getattr(sys.modules[module], name, None)
            if inspect.isclass(found) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{full} is neither plain data nor a class of the environment")
