"""Pickles of environment states that are read without running code that they name.

Environments keep arbitrary objects in their attributes, so their states are pickles, and a pickle names functions and classes to call. The
reader here calls a few functions of Python and numpy, with plain data, and nothing else. Objects of the environment's own packages are
built without calling their classes (`instances`). Objects that belong to the running environment itself are not saved; they have names,
and a state is read with the environment that takes it.
"""

from __future__ import annotations

import enum
import importlib
import io
import pickle
import sys
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from natgrad_apps.agents import array_views, instances
from natgrad_apps.agents.array_views import Array

_CALLED = frozenset(
    {
        *(f"builtins.{name}" for name in ("complex", "slice", "range")),
        *(
            f"numpy.{core}.{name}"
            for core in ("core", "_core")
            for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
        ),
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.random._pickle.__{name}_ctor" for name in ("generator", "bit_generator", "randomstate")),
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "random.Random",
    }
)
_SIMULATORS = frozenset({"ale_py._ale_py.ALEState", "mujoco._structs.MjData", "mujoco._structs.MjModel"})
# Factories, and arguments of what is called.
_VALUES = frozenset(
    {
        *(f"builtins.{name}" for name in ("bool", "int", "float", "str", "bytes", "tuple", "list", "dict", "set", "frozenset")),
        *(f"collections.{name}" for name in ("deque", "OrderedDict", "defaultdict", "Counter")),
        *(f"numpy.{kind.__name__}" for kind in np.sctypeDict.values()),
        "numpy.random._pcg64.PCG64DXSM",
        *(f"numpy.random._{kind.lower()}.{kind}" for kind in ("PCG64", "MT19937", "Philox", "SFC64")),
        "numpy.random.bit_generator.SeedSequence",
        "numpy.random._generator.Generator",
    }
)
_TRUSTED = _CALLED | _SIMULATORS | _VALUES
# Packages of wrappers that keep no object of their own classes.
_NEVER = frozenset({"natgrad_apps", "stable_baselines3"})
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
# Opcodes of protocol 5 that only move values; those that call or change something are methods of `_Unpickler`, and there are no others.
_HARMLESS = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.LONG4),
    *(pickle.BINFLOAT, pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8, pickle.SHORT_BINBYTES, pickle.BINBYTES),
    *(pickle.BINBYTES8, pickle.BYTEARRAY8, pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.TUPLE),
    *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID),
)


def dumps(value: Any, live: Mapping[str, Any]) -> bytes:
    """Pickle a value; arrays that share memory go on to share it.

    Args:
        value: The value; pickling arbitrary objects may raise any exception.
        live: Objects that are not saved, and the names that `loads` is to find others by.

    Raises:
        pickle.PicklingError: An array is a view of a simulator's memory.
    """
    first = _Pickler(live, {})
    data = first.dumps(value)
    if _has_mujoco(live.values()) and any(array_views.is_foreign(array) for array in first.arrays):
        raise pickle.PicklingError("an array is a view of the simulator's memory, which a copy of it would not be")
    views = array_views.find_views(first.arrays)
    return _Pickler(live, views).dumps(value) if views else data


def loads(data: bytes, packages: Collection[str], live: Mapping[str, Any]) -> Any:
    """Unpickle a value.

    Args:
        data: The pickle.
        packages: Top-level packages whose classes may be named; those of this project and of SB3 never are.
        live: Objects for the names that `dumps` gave.

    Raises:
        pickle.UnpicklingError: It names something else, or is no pickle.
    """
    try:
        return _Unpickler(data, frozenset(packages) - _NEVER, live).load_all()
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise pickle.UnpicklingError(f"not a state of this environment: {type(error).__name__}: {error}") from error


class _Pickler(pickle.Pickler):
    def __init__(self, live: Mapping[str, Any], views: Mapping[int, Array]) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=5)
        self._names = {id(value): name for name, value in live.items()}
        self._views = views
        self.arrays: list[Array] = []

    def dumps(self, value: Any) -> bytes:
        self.dump(value)
        return self._file.getvalue()

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            self.arrays.append(obj)
            root = self._views.get(id(obj))
            if root is not None and type(obj) is np.ndarray:
                offset = obj.__array_interface__["data"][0] - root.__array_interface__["data"][0]
                return np.ndarray, (obj.shape, obj.dtype, root, offset, obj.strides)
        elif isinstance(obj, enum.Enum):
            return type(obj), (obj._name_,)
        return NotImplemented


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Any

    def __init__(self, data: bytes, packages: Collection[str], live: Mapping[str, Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._packages, self._live = packages, live
        self._fixed = {id(value) for value in live.values()}
        # Objects by identity, all of them kept so that none is another's. Plain values include the names that are trusted.
        self._called: dict[int, Any] = {}
        self._plain: dict[int, Any] = {}
        self._built: dict[int, Any] = {}
        # Plain values that are not in use yet. Only these take a state: a new one would free memory that others look at.
        self._unused: dict[int, Any] = {}
        self._hollow: dict[int, Any] = {}  # simulators whose state has not been set: pointers to nowhere

    def load_all(self) -> Any:
        value = self.load()
        if self._hollow:
            raise pickle.UnpicklingError("a simulator without a state")
        return value

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not str or pid not in self._live:
            raise pickle.UnpicklingError(f"the environment has no part {pid!r}" if type(pid) is str else "a part without a name")
        return self._live[pid]

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        found: Any = None
        if full in _TRUSTED and "." not in name:
            found = getattr(importlib.import_module(module) if module.startswith("numpy.") else sys.modules.get(module), name, None)
            if found is not None:
                self._plain[id(found)] = found
                if full in _CALLED:
                    self._called[id(found)] = found
                return found
        elif module.partition(".")[0] in self._packages:
            found = sys.modules.get(module)
            for part in name.split("."):
                found = vars(found).get(part) if isinstance(found, (type, ModuleType)) else None
            if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name):
                return found
        raise pickle.UnpicklingError(f"{full} is neither plain data nor a class of the environment")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("arguments that are no tuple")
        if id(function) in self._called:
            made = self._call(function, arguments)
            if id(made) not in self._plain:
                self._plain[id(made)] = self._unused[id(made)] = made
        elif issubclass(type(function), enum.EnumMeta):
            made = instances.member(function, arguments)
        elif issubclass(type(function), type):
            made = instances.container(function, arguments, lambda factory: factory is None or id(factory) in self._plain)
            self._built[id(made)] = made
        else:
            raise pickle.UnpicklingError(f"an instance of {instances.name(function)} cannot be called")
        self.stack.append(made)

    def load_newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not issubclass(type(kind), type) or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"an instance of {instances.name(kind)} is no class")
        if id(kind) in self._plain and f"{kind.__module__}.{kind.__qualname__}" in _SIMULATORS and not arguments:
            made = kind.__new__(kind)
            self._plain[id(made)] = self._unused[id(made)] = self._hollow[id(made)] = made
        else:
            made = instances.new(kind, arguments)
            self._built[id(made)] = made
        self.stack.append(made)

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if id(made) in self._built:
            instances.fill(made, state)
            return
        if self._unused.pop(id(made), None) is None:
            raise pickle.UnpicklingError(f"an instance of {instances.name(made)} that takes no state")
        objects = type(made) is np.ndarray and type(state) is tuple and len(state) == 5 and type(state[4]) is list
        if not self._is_plain(state[:4] if objects else state) or (isinstance(made, np.dtype) and not _fits(made, state)):
            raise pickle.UnpicklingError(f"the state of an instance of {instances.name(made)} is no plain data")
        made.__setstate__(state)
        self._hollow.pop(id(made), None)

    def load_append(self) -> None:
        item, target = self.stack.pop(), self.stack[-1]
        instances.extend(self._new(target), [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        instances.extend(self._new(self.stack[-1]), items)

    def load_setitem(self) -> None:
        value, key, target = self.stack.pop(), self.stack.pop(), self.stack[-1]
        instances.update(self._new(target), [key], [value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        instances.update(self._new(self.stack[-1]), items[::2], items[1::2])

    def load_additems(self) -> None:
        items = self.pop_mark()
        instances.add(self._new(self.stack[-1]), items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        instances.check_keys(items)
        self.stack.append(frozenset(items))

    def _new(self, target: Any) -> Any:
        """Only what is made here is changed here, no part of the running environment."""
        if id(target) in self._built or (type(target) in (list, dict, set) and id(target) not in self._fixed):
            return target
        raise pickle.UnpicklingError(f"items for an instance of {instances.name(target)}")

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        sound = self._is_plain(arguments)
        if function is np.dtype:  # a copy, whose state may be set
            sound = sound and len(arguments) == 3 and type(arguments[0]) is str and arguments[1:] == (False, True)
        elif function is np.ndarray:  # a view; of pointers out of the file it would be unsound
            sound = sound and len(arguments) == 5 and type(arguments[2]) is np.ndarray and not np.dtype(arguments[1]).hasobject
        if not sound:
            raise pickle.UnpicklingError(f"{function.__name__} is called with what is no plain data")
        return function(*arguments)

    def _is_plain(self, value: Any) -> bool:
        """Whether a value has no object that could act on its own, not even when it is used as a number."""
        kind = type(value)
        if kind in _ATOMS:
            return True
        if kind in (tuple, list, set, frozenset):
            return all(map(self._is_plain, value))
        if kind is dict:
            return self._is_plain(list(value.items()))
        self._unused.pop(id(value), None)
        return id(value) in self._plain and not (kind is np.ndarray and value.dtype.hasobject)

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _HARMLESS} | {  # type: ignore[assignment]  # of this class
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }


def _fits(dtype: np.dtype[Any], state: Any) -> bool:
    """Whether a state is what numpy stores for a dtype without fields; one with wrong flags would take numbers for pointers."""
    return (
        type(state) is tuple
        and len(state) in (8, 9)
        and state[2:5] == (None, None, None)
        and state[5] in (-1, dtype.itemsize)
        and state[7] == dtype.flags
    )


def _has_mujoco(values: Iterable[Any]) -> bool:
    return any(type(value).__module__.startswith("mujoco.") for value in values)
