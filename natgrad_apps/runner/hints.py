"""What the type of a key says: its range, its alternatives, and what is legal in words."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from natgrad_apps.runner.yaml_text import Node, Sequence, Table

SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for ``Annotated[int, Range(low=1)]``.

    Attributes:
        low: Smallest legal value.
        high: Largest legal value.
        open_low: Whether `low` itself is illegal.
        open_high: Whether `high` itself is illegal.
    """

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == inf:
            return f"{'>' if self.open_low else '>='} {self.low}"
        if self.low == -inf:
            return f"{'<' if self.open_high else '<='} {self.high}"
        return f"in {'(' if self.open_low else '['}{self.low}, {self.high}{')' if self.open_high else ']'}"


@dataclass(frozen=True)
class Form:
    """Form of a text, for ``Annotated[str, Form(...)]``.

    Attributes:
        pattern: Regular expression that the whole text matches.
        words: What messages and the help call it.
    """

    pattern: str
    words: str

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None

    def __str__(self) -> str:
        return self.words


def strip(hint: Any) -> tuple[Any, Range | Form | None]:
    """A type without its ``Annotated``, and its range or form."""
    if get_origin(hint) is Annotated:
        bare, *extras = get_args(hint)
        return bare, next((e for e in extras if isinstance(e, (Range, Form))), None)
    return hint, None


def alternatives(hint: Any) -> list[Any]:
    """The types that a key may have, the most particular first: text fits everything and comes last.

    Next to a mapping, a class is a component, which YAML gives by name or as a mapping; it is left out.
    """
    bare, _ = strip(hint)
    if get_origin(bare) not in {Union, types.UnionType}:
        return [hint]
    found = get_args(bare)
    if any(is_mapping(member) for member in found):
        found = tuple(member for member in found if not isinstance(member, type) or member in SCALARS)
    return sorted(found, key=_priority)


def component(hint: Any) -> type | None:
    """The class that `alternatives` leaves out, None if there is none."""
    bare, _ = strip(hint)
    found = get_args(bare) if get_origin(bare) in {Union, types.UnionType} else ()
    classes = [
        member for member in found if isinstance(member, type) and get_origin(member) is None and member not in {*SCALARS, dict, list}
    ]
    return classes[0] if classes and any(is_mapping(member) for member in found) else None


def is_dataclass(hint: Any) -> bool:
    """Whether a type is a nested configuration."""
    return isinstance(strip(hint)[0], type) and dataclasses.is_dataclass(strip(hint)[0])


def is_mapping(hint: Any) -> bool:
    """Whether a type is a free mapping."""
    bare, _ = strip(hint)
    return bare is dict or get_origin(bare) in {dict, Mapping}


def is_list(hint: Any) -> bool:
    """Whether a type is a list or tuple."""
    bare, _ = strip(hint)
    return bare in {list, tuple} or get_origin(bare) in {list, tuple, AbstractSequence}


def item_of(hint: Any) -> Any:
    """Type of a list's or mapping's items, `Any` if it is not said."""
    arguments = [a for a in get_args(strip(hint)[0]) if a is not ...]
    return arguments[-1] if arguments else Any


def takes_mapping(hint: Any) -> bool:
    """Whether a key may hold a free mapping, so that names below it are legal."""
    return any(is_mapping(member) for member in alternatives(hint))


def contains(hint: Any, node: Node) -> bool:
    """Whether a list meets a list type, or a mapping a mapping type."""
    if isinstance(node, Table):
        return is_dataclass(hint) or is_mapping(hint)
    return isinstance(node, Sequence) and is_list(hint)


def expected(hint: Any, known: Range | None = None) -> str:
    """What is legal for a type, in words.

    Args:
        hint: The type.
        known: Range of numbers that the type itself does not tell.
    """
    bare, bounds = strip(hint)
    members = alternatives(hint)
    if len(members) > 1:
        return " or ".join(expected(m, known) for m in sorted(members, key=lambda m: m is type(None)))
    if isinstance(bounds, Form):
        return str(bounds)
    if bounds is None and bare in {int, float}:
        bounds = known
    suffix = f" {bounds}" if bounds is not None else ""
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(str(v) for v in get_args(bare))
    if is_list(bare):
        return "a list" + (f" (each: {expected(item_of(bare))})" if item_of(bare) is not Any else "")
    if is_mapping(bare) or is_dataclass(bare):
        return "a mapping"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return words.get(bare, "any value") + suffix


_PRIORITY: list[Callable[[Any], bool]] = [
    lambda t: t is type(None),
    lambda t: t is bool,
    lambda t: get_origin(t) is Literal,
    lambda t: t is int,
    lambda t: t is float,
    lambda t: t is not str,
]


def _priority(hint: Any) -> int:
    bare, _ = strip(hint)
    return next((i for i, test in enumerate(_PRIORITY) if test(bare)), len(_PRIORITY))
