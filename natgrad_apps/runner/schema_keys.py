"""The keys of a configuration: names, types, defaults and meanings, as its dataclasses declare them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from natgrad_apps.runner.hints import alternatives, is_dataclass


@dataclass(frozen=True)
class Key:
    """One key of a configuration that holds a value.

    Attributes:
        owner: Dataclass that has it.
        path: Dotted name, such as ``"agent.n_steps"``.
        hint: Its type.
        default: Its value when it is not given, `dataclasses.MISSING` if it must be given.
        text: What it means.
    """

    owner: type
    path: str
    hint: Any
    default: object
    text: str


def keys(cls: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a configuration that holds a value, in order of declaration."""
    hints, texts = typing.get_type_hints(cls, include_extras=True), field_texts(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        members = alternatives(hints[field.name])
        inner = [member for member in members if is_dataclass(member)]
        for member in inner:
            yield from keys(member, f"{prefix}{field.name}.")
        if len(inner) < len(members):
            yield Key(cls, prefix + field.name, hints[field.name], default_of(field), texts.get(field.name, ""))


def default_of(field: dataclasses.Field[Any]) -> object:
    """The default of a field, `dataclasses.MISSING` if it must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def field_texts(cls: type) -> dict[str, str]:
    """What each field means, from the ``Attributes:`` section of the docstring."""
    texts: dict[str, str] = {}
    name, inside = "", False
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():  # Python 3.13 takes the indentation away itself
        stripped = line.strip()
        if stripped == "Attributes:":
            inside = True
        elif inside and line.startswith(" " * 8) and name:
            texts[name] += " " + stripped
        elif inside and line.startswith(" " * 4) and ":" in stripped:
            name, _, text = stripped.partition(":")
            texts[name] = text.strip()
        elif inside and stripped:
            break
    return texts
