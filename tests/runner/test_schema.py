"""Dataclasses as schemas: types, ranges, suggestions, and the way back to YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import schema
from natgrad_apps.runner.hints import Range, expected
from natgrad_apps.runner.yaml_text import read_yaml


@dataclass(frozen=True)
class Inner:
    """Inner part.

    Attributes:
        rate: A share.
        mode: What to do,
            on two lines.
    """

    rate: Annotated[float, Range(low=0, high=1, open_high=True)] = 0.5
    mode: Literal["none", "some", "all"] = "none"

    def __post_init__(self) -> None:
        if self.mode == "all" and self.rate == 0:
            raise ConfigError("mode 'all' needs a rate")


@dataclass(frozen=True)
class Outer:
    """Outer part."""

    needed: int
    inner: Inner = field(default_factory=Inner)
    count: Annotated[int, Range(low=1)] = 3
    flag: bool = False
    word: str = "x"
    maybe: float | None = None
    step: Annotated[float, Range(low=0, open_low=True)] | str = 0.1
    widths: list[Annotated[int, Range(low=1)]] | dict[str, list[int]] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    free: Mapping[str, Any] = field(default_factory=dict)


def read(text: str) -> Outer:
    return schema.read(Outer, read_yaml(text, "f.yaml"))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("count: 1e6", "count", 1_000_000),
        ("count: 20.0", "count", 20),
        ("maybe: 1e-3", "maybe", 0.001),
        ("maybe: 1e6", "maybe", 1e6),
        ("maybe: 3", "maybe", 3.0),
        ("maybe: null", "maybe", None),
        ("flag: on", "flag", True),
        ("flag: no", "flag", False),
        ("word: on", "word", "on"),
        ("word: no", "word", "no"),
        ("word: 012", "word", "012"),
        ("word: 1e-3", "word", "1e-3"),
        ("step: lin_0.25", "step", "lin_0.25"),
        ("step: 1e-2", "step", 0.01),
        ("widths: [64, 1e2]", "widths", [64, 100]),
        ("widths: {a: [1], b: []}", "widths", {"a": [1], "b": []}),
        ("pair: [1, 2]", "pair", (1.0, 2.0)),
        ("free: {a: 1e-3, b: on, c: [null, x]}", "free", {"a": 0.001, "b": "on", "c": [None, "x"]}),
        ("inner: {mode: none}", "inner", Inner(mode="none")),
    ],
)
def test_values_are_read_by_the_type_of_their_key(text: str, name: str, value: object) -> None:
    found = getattr(read(f"needed: 1\n{text}"), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: 2.5", r"^count \(f.yaml:2\): got '2.5'; legal: a whole number >= 1$"),
        ("count: 0", r"got '0'; legal: a whole number >= 1$"),
        ("count: '3'", r"got '3' \(quoted\); legal: a whole number"),
        ("count: true", "got 'true'; legal: a whole number"),
        ("count: 012", "leading zero"),
        ("count: 1e400", "legal: a whole number"),
        ("count: [1]", "got a list of 1; legal: a whole number"),
        ("count:", r"got nothing \(null\)"),
        ("flag: 1", "got '1'; legal: true or false"),
        ("maybe: .inf", "got '.inf'; legal: a number or null"),
        ("maybe: on", "got 'on'; legal: a number or null"),
        ("word: null", "legal: text"),
        ("inner: 3", "got '3'; legal: a mapping with the keys rate, mode"),
        ("inner: {rate: 1}", r"^inner.rate \(f.yaml:2\): got '1'; legal: a number in \[0, 1\)$"),
        ("inner: {mode: al}", "legal: one of none, some, all; did you mean 'all'"),
        ("inner: {mode: all, rate: 0}", r"^inner \(f.yaml:2\): mode 'all' needs a rate$"),
        (
            "inner: {rte: 1}",
            r"^inner.rte \(f.yaml:2\): unknown key, given as '1'; legal keys here: rate, mode; did you mean 'inner.rate'\?$",
        ),
        ("rate: 0.5", r"unknown key.*did you mean 'inner.rate'\?$"),
        ("coutn: 3", "did you mean 'count'"),
        ("widths: [64, 2.5]", r"^widths\[1\] .*got '2.5'"),
        ("widths: {a: [x]}", r"^widths.a\[0\] .*got 'x'"),
        ("free: {a: 012}", "^free.a .*leading zero"),
    ],
)
def test_each_fault_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(f"needed: 1\n{text}")


def test_every_fault_is_found_in_one_pass() -> None:
    with pytest.raises(ConfigError) as caught:
        read("count: 0\nflag: 3\ninner: {rate: 2, foo: 1}\n")
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert [line.split()[0] for line in lines[1:]] == ["count", "flag", "inner.rate", "inner.foo", "needed"]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^needed \(f.yaml.*\): must be given; legal: a whole number$"):
        read("count: 2")


@pytest.mark.parametrize(
    "word", ["on", "null", "~", "", "1e-3", "012", "true", "12", "a: b", "[x", "# no", "lin_0.25", "über", "two\nlines"]
)
def test_text_survives_the_way_to_yaml_and_back(word: str) -> None:
    config = Outer(1, word=word, free={"key": word, "list": [word]})
    assert schema.read(Outer, schema.to_tree(config, "copy")) == config


def test_numbers_survive_the_way_to_yaml_and_back() -> None:
    config = Outer(10**15, maybe=1e-7, step=2.5e10, widths=[1, 2], pair=(1 / 3, -0.0), free={"a": 1.0, "b": 2, "c": None, "d": 1e300})
    copy = schema.read(Outer, schema.to_tree(config, "copy"))
    assert copy == config
    assert type(copy.free["a"]) is float


def test_keys_carry_type_default_and_text() -> None:
    keys = {key.path: key for key in schema.keys(Outer)}
    assert list(keys)[:3] == ["needed", "inner.rate", "inner.mode"]
    assert (keys["inner.rate"].text, keys["inner.mode"].text) == ("A share.", "What to do, on two lines.")
    assert keys["count"].default == 3
    assert expected(keys["maybe"].hint) == "a number or null"


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [
        (Range(low=1), ">= 1", 1, 0.9),
        (Range(low=0, open_low=True), "> 0", 0.1, 0),
        (Range(high=2), "<= 2", 2, 2.1),
        (Range(high=2, open_high=True), "< 2", 1.9, 2),
        (Range(low=0, high=1, open_low=True), "in (0, 1]", 1, 0),
    ],
)
def test_ranges(bounds: Range, text: str, inside: float, outside: float) -> None:
    assert str(bounds) == text
    assert inside in bounds
    assert outside not in bounds
