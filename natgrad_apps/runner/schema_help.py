"""What ``--help`` says of the keys of a configuration: meaning, legal values, default, and the keys of each component.

A component (curvature, damping, step, ...) is given by name or as a mapping; which names there are is read off its folder, which of them a
configuration takes, and which numbers are legal, by asking the classes, whose own checks are the only place that knows.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from natgrad_apps.errors import ConfigError
from natgrad_apps.registry import available, component_name
from natgrad_apps.runner.hints import Range, alternatives, component, expected, is_dataclass, strip
from natgrad_apps.runner.schema import to_plain
from natgrad_apps.runner.schema_keys import Key, default_of, field_texts, keys
from natgrad_apps.statistics.fisher import KINDS, SHARING, Fisher

_NAMES: Mapping[type, Mapping[str, tuple[str, ...]]] = {Fisher: {"kind": KINDS, "sharing": SHARING}}
"""Texts that are legal for fields whose type is only `str`."""
_PROBES = (-1, 0, 0.5, 1, 2)
_RANGES = {
    (0, 0.5, 1, 2): Range(low=0),
    (0.5, 1, 2): Range(low=0, open_low=True),
    (0, 0.5, 1): Range(low=0, high=1),
    (0, 0.5): Range(low=0, high=1, open_high=True),
    (0.5, 1): Range(low=0, high=1, open_low=True),
    (0.5,): Range(low=0, high=1, open_low=True, open_high=True),
    (0, 1, 2): Range(low=0),
    (1, 2): Range(low=1),
}
"""Ranges by the probes that lie in them; 0.5 is none where whole numbers are meant."""


@dataclass(frozen=True)
class Entry:
    """One line of the help.

    Attributes:
        section: Part of the configuration that it is listed under.
        path: Dotted name.
        text: What follows it.
        parsed: Whether the key is an option of its own, rather than one below a mapping.
    """

    section: str
    path: str
    text: str
    parsed: bool = True


@cache
def entries(config: type) -> tuple[Entry, ...]:
    """The help of every key, each followed by the keys of its component."""
    return tuple(entry for key in keys(config) for entry in _of_key(key))


def _of_key(key: Key) -> Iterator[Entry]:
    section, _, name = key.path.rpartition(".")
    base = component(key.hint)
    legal = expected(key.hint, _range(key.owner, name, key.hint))
    if base is None:
        if legal.endswith(" or text") and isinstance(key.default, str) and not _accepts(key.owner, name, "?"):
            legal = legal.removesuffix("text") + key.default
        yield Entry(section, key.path, _sentence(key.text or key.path, legal, _default(key.default)))
        return
    choices = _choices(base)
    names = [known for known in choices or _NAMES.get(base, {}).get("kind", ()) if _accepts(key.owner, name, known)]
    classes = {known: choices[known] for known in names} if choices else {"": base}
    chosen, values = _parts(key.default, base)
    if names:
        word = "name" if choices else "kind"
        legal = legal.replace("a mapping or text", f"one of {', '.join(names)} or a mapping of {word} and the keys below")
    else:
        legal = legal.replace("a mapping", "a mapping of the keys below")
    shown = {"name": chosen, **values} if chosen and values else chosen or key.default
    yield Entry(section, key.path, _sentence(key.text or key.path, legal, _default(shown)))
    yield from _below(section, key.path, classes, chosen, values, names)


def _below(
    section: str, path: str, classes: Mapping[str, type], chosen: str, values: Mapping[str, Any], kinds: Sequence[str] = ()
) -> Iterator[Entry]:
    """The keys of a component.

    Args:
        section: Part of the configuration that it is listed under.
        path: Its own key.
        classes: What it can be, by name; one class without a name if there is no choice.
        chosen: Name of the default; empty for none.
        values: Fields of the default that are given.
        kinds: Legal values of a field ``kind``.
    """
    fields = {(f.name, name): f for name, cls in classes.items() for f in dataclasses.fields(cls) if f.init}
    for field in dict.fromkeys(field for field, _ in fields):
        names = [name for name in classes if (field, name) in fields]
        cls = classes[names[0]]
        hint = typing.get_type_hints(cls, include_extras=True)[field]
        defaults = {name: default_of(fields[field, name]) for name in names}
        if is_dataclass(hint):
            yield from _below(section, f"{path}.{field}", {"": hint}, "", {})
            continue
        texts = kinds if field == "kind" and kinds else _NAMES.get(cls, {}).get(field)
        legal = f"one of {', '.join(texts)}" if texts else expected(hint, _range(cls, field, hint))
        text = f"For {', '.join(names)}: {_text(cls, field)}" if len(classes) > 1 else _text(cls, field)
        usual = values.get(field, defaults.get(chosen, next(iter(defaults.values()))))
        others = {_default(value) for value in defaults.values() if value != usual}
        default = _default(usual) + (f"; {' or '.join(sorted(others))} for a name alone" if others else "")
        yield Entry(section, f"{path}.{field}", _sentence(text, legal, default), parsed=False)


def _choices(base: type) -> dict[str, type]:
    """What a component can be, if its base class has a folder."""
    folder, _, module = base.__module__.rpartition(".")
    return dict(available(importlib.import_module(folder), base)) if module == "base" else {}


def _parts(default: Any, base: type) -> tuple[str, dict[str, Any]]:
    """The name of a default component and the fields that it gives."""
    if isinstance(default, str):
        return default, {}
    if isinstance(default, Mapping):
        rest = dict(default)
        return str(rest.pop("name", "")), rest
    kind: Any = type(default)
    if issubclass(kind, base):
        return component_name(kind), {f.name: getattr(default, f.name) for f in dataclasses.fields(kind)}
    return "", {}


def _text(cls: type, field: str) -> str:
    """What a field means, by the class that documents it first and does not refer to another."""
    found = [texts[field] for ancestor in cls.__mro__ if field in (texts := field_texts(ancestor))]
    return next((text for text in found if not text.startswith("See `")), field)


def _accepts(owner: type, field: str, value: object) -> bool:
    """Whether a dataclass with this value can be made."""
    try:
        owner(**{field: value})
    except ConfigError:
        return False
    except TypeError:  # it has fields that must be given, so it cannot be asked
        return True
    return True


def _range(owner: type, field: str, hint: Any) -> Range | None:
    """Range of a number whose type tells none, by the checks of its class; None if there is none, or another than those known."""
    if not any(strip(member) in {(int, None), (float, None)} for member in alternatives(hint)):
        return None
    fractions = any(strip(member)[0] is float for member in alternatives(hint))
    return _RANGES.get(tuple(n for n in _PROBES if (fractions or isinstance(n, int)) and _accepts(owner, field, n)))


def _sentence(text: str, legal: str, default: str) -> str:
    plain = text.replace("``", "").replace("`", "")
    return f"{plain} Legal: {legal}" + (f" (default: {default})" if default else "")


def _default(value: object) -> str:
    """A default as it is written in YAML, on one line."""
    if value is dataclasses.MISSING:
        return ""
    plain = to_plain(value)
    if isinstance(plain, Mapping):
        return "{" + ", ".join(f"{name}: {_default(item)}" for name, item in plain.items()) + "}"
    if isinstance(plain, list):
        return "[" + ", ".join(map(_default, plain)) + "]"
    return "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)
