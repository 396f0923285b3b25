"""Strict reading of YAML: scalars stay text until the type of their key is known.

PyYAML follows YAML 1.1 and decides from the text alone: ``1e-3`` becomes a string, ``on`` a boolean, ``012`` ten, and of two equal
keys the second wins in silence. Here `read_yaml` keeps every scalar as written, with the line it stands on, and refuses doubled keys;
`natgrad_apps.runner.schema` turns the text into the type that the configuration declares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TypeAlias, Union

import yaml

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.words import one_line

MAX_DEPTH = 20
NULLS = frozenset({"", "~", "null"})
TRUE = frozenset({"true", "yes", "on"})
FALSE = frozenset({"false", "no", "off"})
# What PyYAML resolves plain values to; every other tag was written.
_PLAIN_TAGS = frozenset({"bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp", "value"})
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LEADING_ZERO = re.compile(r"[-+]?0\d")


@dataclass(frozen=True)
class Scalar:
    """One value as it was written.

    Attributes:
        text: The characters, without quotes.
        place: Where it stands, such as ``"cartpole.yaml:12"`` or ``"command line"``.
        quoted: Whether it was quoted, and so is meant as text.
    """

    text: str
    place: str
    quoted: bool = False

    @property
    def is_null(self) -> bool:
        """Whether the value is one of YAML's spellings of nothing."""
        return not self.quoted and self.text.lower() in NULLS


@dataclass(frozen=True)
class Sequence:
    """A list of nodes, and where it begins."""

    items: tuple[Node, ...]
    place: str


@dataclass(frozen=True)
class Table:
    """A mapping of keys to nodes, and where it begins."""

    entries: Mapping[str, Node]
    place: str


Node: TypeAlias = Union[Scalar, Sequence, Table]  # noqa: UP007  (evaluated at run time, where | needs the classes to exist)


def read_yaml(text: str, source: str) -> Table:
    """Parse a YAML document whose top level is a mapping.

    Args:
        text: The document; an empty one is an empty mapping.
        source: Name of the document for messages, such as a file name.

    Raises:
        ConfigError: The text is no YAML, holds a key twice, or its top level is no mapping.
    """
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {yaml_fault(error)}") from error
    if len(documents) > 1:
        raise ConfigError(f"{source} holds {len(documents)} YAML documents; one is needed")
    if not documents or documents[0] is None:
        return Table({}, source)
    node = _convert(documents[0], source, 0)
    if not isinstance(node, Table):
        raise ConfigError(f"{source} must hold a mapping of keys to values, not {describe(node)}")
    return node


def read_value(text: str, place: str) -> Node:
    """Parse a value of the command line: ``[...]`` and ``{...}`` as YAML, everything else as one scalar.

    Raises:
        ConfigError: A bracketed value is no YAML.
    """
    if not text.lstrip().startswith(("[", "{")):
        return Scalar(text, place)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: {text!r} is not a valid list or mapping: {yaml_fault(error, lines=False)}") from error
    assert node is not None
    return _convert(node, place, 0, lines=False)


def yaml_fault(error: Exception, *, lines: bool = True) -> str:
    """What PyYAML found wrong, and in which line, in one line of text.

    Args:
        error: What it raised.
        lines: Whether to name the line.
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        return one_line(error)
    what = ", ".join(part for part in (error.context, error.problem) if part)
    hint = "; indent with spaces" if "'\\t'" in what else ""
    return (f"line {error.problem_mark.line + 1}: " if lines and error.problem_mark is not None else "") + what + hint


def merge(base: Table, override: Table) -> Table:
    """The entries of both; where both have a mapping it is merged, else the override's value stands.

    A mapping with another ``name`` describes another component, whose fields have nothing to do with those of the old one; it replaces
    the old one. A mapping without a name over a component that was given by its name alone adds fields to it.
    """
    entries = dict(base.entries)
    for key, value in override.entries.items():
        old = entries.get(key)
        if isinstance(value, Table) and isinstance(old, Scalar) and _is_name(old) and not {"name", "kind"} & value.entries.keys():
            old = Table({"name": old}, old.place)
        both = isinstance(old, Table) and isinstance(value, Table) and _name(value) in {None, _name(old)}
        entries[key] = merge(old, value) if both and isinstance(old, Table) and isinstance(value, Table) else value
    return Table(entries, override.place)


def describe(node: Node) -> str:
    """What was given, for a message."""
    if isinstance(node, Sequence):
        return f"a list of {len(node.items)}"
    if isinstance(node, Table):
        return f"a mapping with the keys {', '.join(node.entries) or '(none)'}"
    return "nothing (null)" if node.is_null else repr(node.text) + (" (quoted)" if node.quoted else "")


def parse_bool(scalar: Scalar) -> bool | None:
    """The boolean that a plain scalar spells, or None."""
    word = "" if scalar.quoted else scalar.text.lower()
    return True if word in TRUE else False if word in FALSE else None


def parse_number(scalar: Scalar) -> Decimal | None:
    """The finite decimal number that a plain scalar spells, or None.

    Raises:
        ConfigError: The number has a leading zero, which YAML 1.1 reads as octal.
    """
    if scalar.quoted or not _NUMBER.fullmatch(scalar.text):
        return None
    if _LEADING_ZERO.match(scalar.text):
        raise ConfigError(
            f"got {scalar.text!r}: a leading zero is refused, because YAML readers disagree about octal; write {_plain(scalar.text)}"
        )
    try:
        return Decimal(scalar.text.replace("_", ""))
    except InvalidOperation:
        return None


def parse_any(scalar: Scalar) -> bool | int | float | str | None:
    """The value of a scalar whose key declares no type: null, ``true``/``false``, a decimal number, else text.

    Raises:
        ConfigError: The number has a leading zero.
    """
    if scalar.is_null:
        return None
    if not scalar.quoted and scalar.text.lower() in {"true", "false"}:
        return scalar.text.lower() == "true"
    number = parse_number(scalar)
    if number is None:
        return scalar.text
    return int(number) if number == number.to_integral_value() and "." not in scalar.text and abs(number.adjusted()) < 16 else float(number)


def _name(table: Table) -> str | None:
    name = table.entries.get("name")
    return name.text if isinstance(name, Scalar) else None


def _is_name(scalar: Scalar) -> bool:
    return re.fullmatch(r"[A-Za-z]\w*", scalar.text) is not None and not scalar.is_null


def _plain(text: str) -> str:
    sign, digits = (text[0], text[1:]) if text[0] in "+-" else ("", text)
    stripped = digits.lstrip("0")
    return sign + (stripped if stripped[:1].isdigit() else "0" + stripped)


def _convert(node: yaml.Node, source: str, depth: int, lines: bool = True, owner: yaml.Node | None = None) -> Node:
    # A mapping begins a line below its key, and it is the key that messages name.
    place = f"{source}:{(owner or node).start_mark.line + 1}" if lines else source
    if depth > MAX_DEPTH:
        raise ConfigError(f"{place}: nested more than {MAX_DEPTH} levels deep")
    prefix, _, kind = str(node.tag).rpartition(":")
    if prefix != "tag:yaml.org,2002" or kind not in _PLAIN_TAGS:
        raise ConfigError(f"{place}: the YAML tag {node.tag!r} is not legal here; write plain values")
    if isinstance(node, yaml.ScalarNode):
        return Scalar(str(node.value), place, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        return Sequence(tuple(_convert(item, source, depth + 1, lines) for item in node.value), place)
    entries: dict[str, Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{place}: a key must be a word, not a {key.id}")
        if key.value in entries:
            raise ConfigError(f"{source}:{key.start_mark.line + 1}: the key {key.value!r} is given twice; keep one")
        entries[str(key.value)] = _convert(value, source, depth + 1, lines, key)
    return Table(entries, place)
