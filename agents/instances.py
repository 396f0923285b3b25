"""Instances that are built and filled without calling anything of their classes.

Every function here reads classes through their ``__dict__`` and calls methods of builtin types only: for a state of an environment out of
a file, whose objects may be made up of any classes and values.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import pickle
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_IMMUTABLE: tuple[Any, ...] = (int, float, complex, str, bytes)
_CONTAINERS: tuple[Any, ...] = (
    *(set, frozenset),
    *(collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter),
)
_BASES = frozenset({*_IMMUTABLE, *_CONTAINERS, tuple, list, dict, object})
_METHODS = (FunctionType, classmethod, staticmethod, BuiltinFunctionType, WrapperDescriptorType, MethodDescriptorType)


def new(kind: type, arguments: tuple[Any, ...]) -> Any:
    """An instance without attributes, as ``kind.__new__(kind, *arguments)`` of the builtin type below makes it.

    Args:
        kind: Its class.
        arguments: What `pickle` stores: the value of an immutable type, the fields of a namedtuple, or nothing.

    Raises:
        pickle.UnpicklingError: The class needs calls of its own.
    """
    base = _base(kind)
    if base is tuple and _is_namedtuple(kind) and len(arguments) == len(find(kind, "_fields")):
        return tuple.__new__(kind, arguments)
    if base is tuple or base in _IMMUTABLE:
        own = find(kind, "__getnewargs__") is not vars(base).get("__getnewargs__") or find(kind, "__getnewargs_ex__") is not None
        if own or [type(argument) for argument in arguments] != [base]:
            raise pickle.UnpicklingError(f"{name(kind)} is not built from its value alone")
        return base.__new__(kind, arguments[0])
    if arguments or isinstance(find(kind, "__new__"), (staticmethod, FunctionType)):
        raise pickle.UnpicklingError(f"{name(kind)} has a __new__ of its own, which is not called")
    return base.__new__(kind)


def container(kind: type, arguments: tuple[Any, ...], is_factory: Callable[[Any], bool]) -> Any:
    """A set, deque, OrderedDict, defaultdict or Counter, or an instance of a subclass, from what `pickle` stores.

    Args:
        kind: Its class.
        arguments: For the class.
        is_factory: Whether an object may be the factory of a defaultdict.

    Raises:
        pickle.UnpicklingError: It is none of these, or the arguments are other ones.
    """
    base = _base(kind)
    kinds = tuple(type(argument) for argument in arguments)
    if base in (set, frozenset) and kinds == (list,):
        check_keys(arguments[0])
        made = base.__new__(kind, *(arguments if base is frozenset else ()))
        if base is set:
            set.update(made, arguments[0])
    elif base is collections.Counter and kinds == (dict,):
        made = dict.__new__(kind)
        dict.update(made, arguments[0])
    elif base is collections.deque and kinds in ((), (tuple,), (tuple, int)) and not (arguments and arguments[0]):
        made = collections.deque.__new__(kind)
        collections.deque.__init__(made, *arguments)
    elif base is collections.OrderedDict and not arguments:
        made = collections.OrderedDict.__new__(kind)
        collections.OrderedDict.__init__(made)
    elif base is collections.defaultdict and (not arguments or (len(arguments) == 1 and is_factory(arguments[0]))):
        made = collections.defaultdict.__new__(kind)
        collections.defaultdict.__init__(made, *arguments)
    else:
        raise pickle.UnpicklingError(f"{name(kind)} cannot be called")
    return made


def member(kind: Any, arguments: tuple[Any, ...]) -> Any:
    """The member of an enumeration of a name.

    Args:
        kind: The enumeration.
        arguments: The name.

    Raises:
        pickle.UnpicklingError: It has no such member; combinations of flags have no name.
    """
    found = vars(kind)["_member_map_"].get(arguments[0]) if [type(argument) for argument in arguments] == [str] else None
    if found is None:
        raise pickle.UnpicklingError(f"a member of {name(kind)} without a name")
    return found


def fill(instance: Any, state: Any) -> None:
    """Set the attributes of an instance, past its ``__setstate__`` and ``__setattr__``.

    Args:
        instance: Made by `new` or `container`.
        state: Attributes, or a pair of attributes and slots.

    Raises:
        pickle.UnpicklingError: The class sets its state in its own way, or an attribute would hide a method of it.
    """
    kind = type(instance)
    own = find(kind, "__setstate__")
    attributes: Any = None
    if own is not None and own is getattr(dataclasses, "_dataclass_setstate", None) and type(state) is list:
        slots: Any = dict(zip((field.name for field in dataclasses.fields(kind)), state, strict=True))
    else:
        # Those of gymnasium's spaces set the attributes as they are; the rest is about pickles of years ago.
        if own is not None and not str(getattr(own, "__module__", "")).startswith("gymnasium.spaces."):
            raise pickle.UnpicklingError(f"{name(kind)} has a __setstate__ of its own, which is not called")
        attributes, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    for part in (attributes, slots):
        if part is not None and not (type(part) is dict and all(type(key) is str for key in part)):
            raise pickle.UnpicklingError(f"the state of a {name(kind)} is no dictionary of attributes")
    if attributes:
        target = next((vars(base)["__dict__"] for base in kind.__mro__ if "__dict__" in vars(base)), None)
        hidden = [key for key in attributes if is_method(kind, key)]
        if hidden or not isinstance(target, GetSetDescriptorType):
            raise pickle.UnpicklingError(f"attributes of a {name(kind)} hide its methods: {hidden}")
        target.__get__(instance).update(attributes)
    for key, value in (slots or {}).items():
        slot = find(kind, key)
        if not isinstance(slot, MemberDescriptorType):
            raise pickle.UnpicklingError(f"{name(kind)} has no slot {key!r}")
        slot.__set__(instance, value)


def extend(sequence: Any, items: Sequence[Any]) -> None:
    """Append to a list or deque, or an instance of a subclass, as the builtin type does."""
    _method(sequence, (list, collections.deque), "extend")(sequence, items)


def add(collection: Any, items: Sequence[Any]) -> None:
    """Add to a set, or an instance of a subclass, as the builtin type does."""
    check_keys(items)
    _method(collection, (set,), "update")(collection, items)


def update(mapping: Any, keys: Sequence[Any], values: Sequence[Any]) -> None:
    """Set items of a dict, OrderedDict, defaultdict or Counter, or an instance of a subclass, as the builtin type does."""
    check_keys(keys)
    kinds = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
    set_item = _method(mapping, kinds, "__setitem__")
    for key, value in zip(keys, values, strict=True):
        set_item(mapping, key, value)


def check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys whose class has a ``__hash__`` or ``__eq__`` in Python: to put them into a set or dictionary calls these.

    Args:
        keys: Iterated as they are.

    Raises:
        pickle.UnpicklingError: A key has one.
    """
    for key in keys:
        kind = type(key)
        if kind in _ATOMS:
            continue
        if issubclass(kind, (tuple, frozenset)):
            check_keys(tuple.__iter__(key) if issubclass(kind, tuple) else frozenset.__iter__(key))
        for operation in ("__hash__", "__eq__"):
            found = find(kind, operation)
            if not isinstance(found, WrapperDescriptorType) and getattr(found, "__module__", None) != enum.__name__:
                raise pickle.UnpicklingError(f"{name(kind)} has {operation} of its own, which is not called, so it cannot be a key")


def find(kind: type, attribute: str) -> Any:
    """What a class has under a name, as it stands in its ``__dict__`` or that of a base; None if nothing."""
    return next((vars(base)[attribute] for base in kind.__mro__ if attribute in vars(base)), None)


def is_method(kind: type, attribute: str) -> bool:
    """Whether a class has a method of a name, which an attribute of that name would hide."""
    return isinstance(find(kind, attribute), _METHODS)


def name(kind: Any) -> str:
    """Of a class, for errors; of the class of anything else."""
    return str(vars(type)["__qualname__"].__get__(kind) if issubclass(type(kind), type) else type(kind).__qualname__)


def _base(kind: type) -> Any:
    """The builtin type that a class is an instance's memory from; no class that acts on its own when an instance ends."""
    if issubclass(kind, (type, enum.Enum)) or find(kind, "__del__") is not None:
        raise pickle.UnpicklingError(f"{name(kind)} cannot be built without calling it")
    return next(base for base in kind.__mro__ if base in _BASES)


def _is_namedtuple(kind: type) -> bool:
    own = find(kind, "__getnewargs__")
    return isinstance(own, FunctionType) and own.__code__.co_filename == collections.namedtuple.__code__.co_filename


def _method(target: Any, kinds: tuple[Any, ...], attribute: str) -> Any:
    base = _base(type(target))
    if base not in kinds:
        raise pickle.UnpicklingError(f"items for a {name(type(target))}")
    return getattr(base, attribute)
