"""Components found by scanning a folder: nothing is listed by hand, so a new method is one new file."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from natgrad_apps.errors import ConfigError, unknown_name

T = TypeVar("T")


def component_name(cls: type) -> str:
    """Name of a component class: its ``name`` attribute, else the class name in snake case."""
    own = cls.__dict__.get("name")
    return own if isinstance(own, str) else re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


@cache
def _classes(package: ModuleType) -> tuple[type, ...]:
    """Concrete classes defined in the modules of a folder; underscored modules and ``base`` are left out."""
    found: list[type] = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_") or info.name == "base":
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]
        found += [value for value in own if not inspect.isabstract(value)]
    return tuple(found)


def available(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` defined in the modules of `package`, by name."""
    return {component_name(cls): cls for cls in _classes(package) if issubclass(cls, base)}


def record(cls: type[T], spec: object, kind: str) -> T:
    """An options record from itself or a mapping of some of its fields.

    Args:
        cls: A dataclass.
        spec: One of its objects (returned as it is), or a mapping.
        kind: What it is the value of, for the error messages.

    Raises:
        ConfigError: Another type, an unknown field, or a value that is not legal.
    """
    if isinstance(spec, cls):
        return spec
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{kind} must be {cls.__name__}, a mapping of its fields or None; got {spec!r}")
    legal = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in spec:
        if name not in legal:
            raise unknown_name(f"option of {kind}:", str(name), legal)
    return cls(**spec)


def build(package: ModuleType, base: type[T], spec: object, kind: str) -> T:
    """Turn a specification into a component.

    Args:
        package: The folder that is scanned.
        base: The type of the component.
        spec: A component (returned as it is), a name such as ``"kfac"``, or a mapping with the key ``name`` and the
            component's fields, such as ``{"name": "kfac", "decay": 0.99}``.
        kind: Word for the error messages.

    Raises:
        ConfigError: The name is unknown, a field is unknown, or the specification has another type.
    """
    if isinstance(spec, base):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(
            f"{kind} must be a name, a mapping with 'name', or a {base.__name__} object; got {spec!r} of type {type(spec).__name__}"
        )
    fields: dict[str, Any] = dict(spec)
    if "name" not in fields:
        raise ConfigError(f"{kind} has no 'name'; got the keys {sorted(fields)}; available: {', '.join(sorted(available(package, base)))}")
    name = fields.pop("name")
    classes = available(package, base)
    if name not in classes:
        raise unknown_name(kind, str(name), classes)
    cls = classes[name]
    legal = list(inspect.signature(cls).parameters)
    for field in fields:
        if field not in legal:
            raise unknown_name(f"option of {kind} {name!r}:", field, legal)
    try:
        return cls(**fields)
    except TypeError as error:
        raise ConfigError(f"{kind} {name!r} cannot be built from {fields!r}: {error}") from error
