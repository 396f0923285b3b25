"""Strict, typed configurations: a tree of YAML nodes becomes nested dataclasses, and back.

The dataclass is the schema: its annotations say which type a key has, `Range` which numbers are legal, its ``Attributes:`` docstring what
the key means. Every fault is found in one pass, and each message names the key, what was given and where, and what is legal.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.hints import Range, alternatives, contains, expected, is_dataclass, is_list, is_mapping, item_of, strip
from natgrad_apps.runner.schema_keys import Key, default_of, keys
from natgrad_apps.runner.yaml_text import Node, Scalar, Sequence, Table, describe, parse_any, parse_bool, parse_number, read_yaml

__all__ = ["Key", "keys", "problems", "read", "read_scalar", "to_plain", "to_tree", "to_yaml"]

T = TypeVar("T")
LARGEST_EXPONENT = 308
"""Of a double."""
_BAD: Any = object()


def read(cls: type[T], tree: Table) -> T:
    """Build a configuration.

    Args:
        cls: A dataclass.
        tree: What was given, see `natgrad_apps.runner.yaml_text`.

    Raises:
        ConfigError: A key is unknown, has the wrong type or is out of range. The message lists every fault.
    """
    reader = _Reader(cls)
    value = reader.table(cls, tree, "")
    reader.raise_problems()
    assert isinstance(value, cls)
    return value


def problems(cls: type, tree: Table) -> list[str]:
    """The faults that `read` would raise, one by one."""
    reader = _Reader(cls)
    reader.table(cls, tree, "")
    return reader.problems


def read_scalar(hint: Any, node: Node, name: str) -> Any:
    """Read one value that is no part of a configuration.

    Args:
        hint: Its type.
        node: What was given.
        name: What messages call it.

    Raises:
        ConfigError: It does not fit.
    """
    reader = _Reader(Range)
    value = reader.value(hint, node, name)
    reader.raise_problems()
    return value


def to_plain(value: object) -> Any:
    """A configuration as nested dictionaries, lists and scalars, ready for YAML; a part with a method ``to_dict`` says itself how."""
    if hasattr(value, "to_dict"):
        return to_plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes every text that a reader could take for something else, and repeats instead of using anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        plain = parse_any(Scalar(text, "")) == text
    except ConfigError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)


def to_yaml(value: object) -> str:
    """A configuration as YAML text that `read` turns into an equal configuration."""
    return yaml.dump(to_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def to_tree(value: object, source: str) -> Table:
    """A configuration as the tree that `read` takes."""
    return read_yaml(to_yaml(value), source)


class _Reader:
    """One pass over one configuration, which gathers the faults."""

    def __init__(self, root: type) -> None:
        self.root = root
        self.problems: list[str] = []

    def raise_problems(self) -> None:
        if self.problems:
            count = "" if len(self.problems) == 1 else f"{len(self.problems)} problems in the configuration:\n  "
            raise ConfigError(count + "\n  ".join(self.problems))

    def fail(self, path: str, node: Node, message: str) -> Any:
        self.problems.append(f"{path or 'configuration'} ({node.place}): {message}")
        return _BAD

    def mismatch(self, hint: Any, path: str, node: Node, hint_text: str = "") -> Any:
        return self.fail(path, node, f"got {describe(node)}; legal: {expected(hint)}{hint_text}")

    def table(self, cls: type, node: Node, path: str) -> Any:
        """A mapping of keys to values as a dataclass."""
        if not isinstance(node, Table):
            return self.fail(path, node, f"got {describe(node)}; legal: a mapping with the keys {', '.join(_names(cls))}")
        hints = typing.get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        prefix = f"{path}." if path else ""
        for name, child in node.entries.items():
            if name in _names(cls):
                values[name] = self.value(hints[name], child, prefix + name)
            else:
                values[name] = self.unknown(cls, prefix, name, child)
        for field in dataclasses.fields(cls):
            if field.init and field.name not in values and default_of(field) is dataclasses.MISSING:
                values[field.name] = self.fail(prefix + field.name, node, f"must be given; legal: {expected(hints[field.name])}")
        if any(value is _BAD for value in values.values()):
            return _BAD
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:  # the dataclass checks what types and ranges cannot say
            return self.fail(path, node, str(error))

    def unknown(self, cls: type, prefix: str, name: str, node: Node) -> Any:
        legal = _names(cls)
        near = difflib.get_close_matches(name, legal, n=1)
        elsewhere = [key.path for key in keys(self.root) if key.path.rpartition(".")[2] == name]
        guess = [prefix + near[0]] if near else elsewhere[:1]
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        return self.fail(prefix + name, node, f"unknown key, given as {describe(node)}; legal keys here: {', '.join(legal)}{hint}")

    def value(self, hint: Any, node: Node, path: str) -> Any:
        """One value of any type."""
        members = alternatives(hint)
        if len(members) > 1:
            return self.union(members, hint, node, path)
        bare, _ = strip(members[0])
        if is_dataclass(bare):
            return self.table(bare, node, path)
        if bare is Any or bare is object:
            return self.free(node, path)
        if is_list(bare):
            return self.sequence(bare, node, path)
        if is_mapping(bare):
            return self.mapping(bare, node, path)
        return self.scalar(members[0], node, path) if isinstance(node, Scalar) else self.mismatch(hint, path, node)

    def union(self, members: list[Any], hint: Any, node: Node, path: str) -> Any:
        """The first of several types that fits."""
        for member in members:
            trial = _Reader(self.root)
            value = trial.value(member, node, path)
            if value is not _BAD:
                return value
            # The faults inside a list or mapping tell more than "none of the types fits".
            if contains(member, node):
                self.problems.extend(trial.problems)
                return _BAD
        return self.mismatch(hint, path, node)

    def sequence(self, hint: Any, node: Node, path: str) -> Any:
        if not isinstance(node, Sequence):
            return self.mismatch(hint, path, node)
        values = [self.value(item_of(hint), child, f"{path}[{i}]") for i, child in enumerate(node.items)]
        if any(v is _BAD for v in values):
            return _BAD
        return values if hint is list or get_origin(hint) is list else tuple(values)

    def mapping(self, hint: Any, node: Node, path: str) -> Any:
        if not isinstance(node, Table):
            return self.mismatch(hint, path, node)
        values = {name: self.value(item_of(hint), child, f"{path}.{name}") for name, child in node.entries.items()}
        return _BAD if any(v is _BAD for v in values.values()) else values

    def free(self, node: Node, path: str) -> Any:
        """A value whose type the configuration leaves open."""
        if isinstance(node, Table):
            return self.mapping(dict, node, path)
        if isinstance(node, Sequence):
            return self.sequence(list, node, path)
        try:
            return parse_any(node)
        except ConfigError as error:
            return self.fail(path, node, str(error))

    def scalar(self, hint: Any, node: Scalar, path: str) -> Any:
        bare, bounds = strip(hint)
        try:
            value = _parse(bare, node)
        except ConfigError as error:
            return self.fail(path, node, str(error))
        if value is _BAD:
            options = [str(v) for v in get_args(bare)] if get_origin(bare) is Literal else []
            near = difflib.get_close_matches(node.text, options, n=1, cutoff=0.4)
            return self.mismatch(hint, path, node, f"; did you mean {near[0]!r}?" if near else "")
        return value if bounds is None or value in bounds else self.mismatch(hint, path, node)


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def _parse(bare: Any, node: Scalar) -> Any:
    """A scalar as a type, or `_BAD`."""
    if bare is type(None):
        return None if node.is_null else _BAD
    if bare is bool:
        value = parse_bool(node)
        return _BAD if value is None else value
    if bare is int or bare is float:
        return _number(bare, parse_number(node))
    if get_origin(bare) is Literal:
        for option in get_args(bare):
            parsed = _parse(type(option), node)
            if parsed is not _BAD and parsed == option:
                return option
        return _BAD
    if bare is str:
        return _BAD if node.is_null else node.text
    raise AssertionError(f"the schema has no reader for {bare!r}")


def _number(bare: type, number: Decimal | None) -> Any:
    if number is None or abs(number.adjusted()) > LARGEST_EXPONENT:
        return _BAD
    if bare is float:
        return float(number)
    return int(number) if number == number.to_integral_value() else _BAD
