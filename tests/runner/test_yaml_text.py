"""YAML scalars stay text, and what YAML readers disagree about is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
import yaml

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner.yaml_text import Scalar, Sequence, Table, merge, parse_any, parse_bool, parse_number, read_value, read_yaml


def scalar(text: str, *, quoted: bool = False) -> Scalar:
    return Scalar(text, "test", quoted)


def test_pyyaml_falls_into_the_traps_that_this_reader_avoids() -> None:
    """If PyYAML ever changes, this module can become simpler."""
    read = yaml.safe_load("{a: 1e-3, b: 1e6, c: on, d: 012, e: 1, e: 2}")
    assert read == {"a": "1e-3", "b": "1e6", "c": True, "d": 10, "e": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", "0.001"), ("1e6", "1000000"), ("1_000", "1000"), ("-.5", "-0.5"), ("+3.", "3"), ("0", "0"), ("0.25", "0.25"), ("-0", "0")],
)
def test_numbers(text: str, value: str) -> None:
    assert parse_number(scalar(text)) == Decimal(value)


@pytest.mark.parametrize("text", ["", "abc", "1e", "e3", ".", "0x10", "0o7", ".inf", "nan", "1.2.3", "1 2", "1,000", "--1", "_1"])
def test_what_is_no_number(text: str) -> None:
    assert parse_number(scalar(text)) is None


@pytest.mark.parametrize(("text", "advice"), [("012", "12"), ("-007", "-7"), ("00", "0"), ("01e3", "1e3"), ("00.5", "0.5")])
def test_leading_zeros_are_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"leading zero.*write {advice}$"):
        parse_number(scalar(text))


def test_a_quoted_number_is_text() -> None:
    assert parse_number(scalar("3", quoted=True)) is None
    assert parse_any(scalar("3", quoted=True)) == "3"


@pytest.mark.parametrize(("text", "value"), [("on", True), ("Yes", True), ("TRUE", True), ("off", False), ("no", False), ("false", False)])
def test_booleans(text: str, value: bool) -> None:
    assert parse_bool(scalar(text)) is value


@pytest.mark.parametrize("text", ["y", "n", "1", "0", ""])
def test_what_is_no_boolean(text: str) -> None:
    assert parse_bool(scalar(text)) is None


def test_untyped_values() -> None:
    given = ["null", "~", "true", "on", "3", "1e3", "2.0", "1e-3", "text", "1e400"]
    # Without a type only YAML 1.2's words are booleans, so that `on` stays the word that was written.
    assert [parse_any(scalar(text)) for text in given] == [None, None, True, "on", 3, 1000, 2.0, 0.001, "text", float("inf")]


def test_a_document_keeps_text_and_places() -> None:
    tree = read_yaml("a: 1e-3\nb:\n  c: [on, '012']\n", "file.yaml")
    assert tree.entries["a"] == Scalar("1e-3", "file.yaml:1")
    inner = tree.entries["b"]
    assert isinstance(inner, Table)
    items = inner.entries["c"]
    assert isinstance(items, Sequence)
    assert items.items == (Scalar("on", "file.yaml:3"), Scalar("012", "file.yaml:3", quoted=True))


def test_a_value_below_its_key_is_named_by_the_line_of_the_key() -> None:
    tree = read_yaml("# first\nenviroment:\n  id: x\n\nwidths:\n  - 1\n  - 2\ntext:\n  word\n", "f.yaml")
    assert {name: node.place for name, node in tree.entries.items()} == {"enviroment": "f.yaml:2", "widths": "f.yaml:5", "text": "f.yaml:8"}
    inner, items = tree.entries["enviroment"], tree.entries["widths"]
    assert isinstance(inner, Table)
    assert inner.entries["id"].place == "f.yaml:3"
    assert isinstance(items, Sequence)
    assert [item.place for item in items.items] == ["f.yaml:6", "f.yaml:7"]


def test_faults_of_yaml_name_the_document_and_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^f.yaml is not valid YAML: line 2: .*indent with spaces$") as caught:
        read_yaml("a:\n\tb: 1\n", "f.yaml")
    assert "unicode string" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^command line: '\[1' is not a valid list or mapping: ") as caught:
        read_value("[1", "command line")
    assert "unicode string" not in str(caught.value)


def test_an_empty_document_is_an_empty_mapping() -> None:
    assert read_yaml("# nothing\n", "file.yaml").entries == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", r"f.yaml:2: the key 'a' is given twice"),
        ("- 1", "must hold a mapping of keys to values, not a list of 1"),
        ("a: [1", "not valid YAML"),
        ("\ta: 1", "not valid YAML"),
        ("a: 1\n---\na: 2", "2 YAML documents"),
        ("a: !!python/object/apply:os.system [ls]", "tag .* is not legal"),
        ("a: !mine 3", "tag '!mine' is not legal"),
        ("a: &x [*x]", "nested more than 20 levels"),
        ("? [1]\n: 2", "a key must be a word"),
    ],
)
def test_refused_documents(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "f.yaml")


def test_values_of_the_command_line() -> None:
    assert read_value("a: b", "here") == Scalar("a: b", "here")
    assert read_value("[1, x]", "here") == Sequence((Scalar("1", "here"), Scalar("x", "here")), "here")
    with pytest.raises(ConfigError, match="not a valid list or mapping"):
        read_value("[1", "here")


def merged(base: str, override: str) -> Table:
    return merge(read_yaml(base, "base"), read_yaml(override, "override"))


def test_merging_keeps_what_is_not_overridden() -> None:
    tree = merged("{a: {b: 1, c: 2}, d: 3}", "{a: {c: 4}}")
    inner = tree.entries["a"]
    assert isinstance(inner, Table)
    assert {k: v.text for k, v in inner.entries.items() if isinstance(v, Scalar)} == {"b": "1", "c": "4"}
    assert set(tree.entries) == {"a", "d"}


@pytest.mark.parametrize(("override", "kept"), [("{a: {value: 2}}", {"name", "value", "x"}), ("{a: {name: new, y: 1}}", {"name", "y"})])
def test_another_component_replaces_the_old_one(override: str, kept: set[str]) -> None:
    inner = merged("{a: {name: old, value: 1, x: 0}}", override).entries["a"]
    assert isinstance(inner, Table)
    assert set(inner.entries) == kept


@pytest.mark.parametrize(
    ("base", "override", "kept"),
    [
        ("{a: ekfac}", "{a: {decay: 1}}", {"name": "ekfac", "decay": "1"}),
        ("{a: exact}", "{a: {kind: mc}}", {"kind": "mc"}),
        ("{a: ekfac}", "{a: {name: kfac}}", {"name": "kfac"}),
        ("{a: 0.1}", "{a: {value: 2}}", {"value": "2"}),
        ("{a: null}", "{a: {value: 2}}", {"value": "2"}),
    ],
)
def test_fields_join_a_component_that_was_given_by_name(base: str, override: str, kept: dict[str, str]) -> None:
    inner = merged(base, override).entries["a"]
    assert isinstance(inner, Table)
    assert {name: node.text for name, node in inner.entries.items() if isinstance(node, Scalar)} == kept
