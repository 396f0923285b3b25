"""``--help`` names every key, every component and its keys, with what is legal, and what it names can be given."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import pytest

from natgrad_apps.agents import cli as agents
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.bayes import cli as bayes
from natgrad_apps.bayes.config import TrainConfig as BayesConfig
from natgrad_apps.errors import ConfigError, check_fraction, check_positive
from natgrad_apps.graphs import cli as graphs
from natgrad_apps.graphs.config import TrainConfig as GraphConfig
from natgrad_apps.runner import schema
from natgrad_apps.runner.arguments import Verb, parse, read_config, verb_parser
from natgrad_apps.runner.hints import Form
from natgrad_apps.runner.schema_help import Entry, entries

Main: TypeAlias = Callable[[Sequence[str] | None], int]
NATURAL = "agent.natural_gradient"


def texts(config: type) -> dict[str, str]:
    return {entry.path: entry.text for entry in entries(config)}


@pytest.mark.parametrize(("main", "config"), [(agents.main, TrainConfig), (bayes.main, BayesConfig), (graphs.main, GraphConfig)])
def test_help_names_every_key_and_what_is_below_it(main: Main, config: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert done.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert {key.path for key in schema.keys(config)} <= texts(config).keys()
    missing = [path for path in texts(config) if f"--{path} VALUE" not in printed]
    assert not missing


def test_components_are_listed_by_name_with_their_keys() -> None:
    found = texts(TrainConfig)
    assert "Legal: one of diagonal, ekfac, exact, gram_kfac, kfac or a mapping of name" in found[f"{NATURAL}.curvature"]
    assert "(default: {name: kl_trust_region, radius: 0.01})" in found[f"{NATURAL}.step"]
    assert found[f"{NATURAL}.step.radius"].endswith("Legal: a number > 0 (default: 0.01; 0.001 for a name alone)")
    assert found[f"{NATURAL}.critic_step.radius"].endswith("Legal: a number > 0 (default: 0.001)")
    assert "Legal: one of mc, exact, empirical, forward_only or a mapping of kind" in found[f"{NATURAL}.fisher"]
    assert "a whole number >= 1" in found[f"{NATURAL}.fisher.subsample.units"]
    assert found[f"{NATURAL}.backtracking.kl_limit"].endswith("Legal: a number > 0 (default: 0.01)")


def test_names_that_a_configuration_refuses_are_left_out() -> None:
    found = texts(TrainConfig) | texts(GraphConfig)
    for path in (f"{NATURAL}.damping", "optimizer.damping"):
        assert "one of tikhonov, factored_tikhonov or" in found[path]
        assert "levenberg" not in found[path]
    assert "one of mc, exact, forward_only or" in found["optimizer.fisher"]


@pytest.mark.parametrize(
    ("path", "legal"),
    [
        (f"{NATURAL}.momentum", "a number in [0, 1)"),
        (f"{NATURAL}.weight_decay", "a number >= 0"),
        (f"{NATURAL}.kl_target", "a number > 0 or null"),
        (f"{NATURAL}.vf_fisher_coef", "a number > 0 or auto"),
        (f"{NATURAL}.curvature.decay", "a number in [0, 1)"),
        ("agent.learning_rate", "a number > 0 or a schedule such as lin_0.25"),
        ("agent.gamma", "a number in (0, 1]"),
    ],
)
def test_numbers_have_their_ranges(path: str, legal: str) -> None:
    assert f"Legal: {legal} (default" in texts(TrainConfig)[path]


@pytest.mark.parametrize("config", [TrainConfig, GraphConfig])
def test_what_help_names_below_a_key_can_be_given(config: type) -> None:
    verbs = {"go": Verb(verb_parser("prog go", "Go.", config), "go", config)}
    below = [entry for entry in entries(config) if not entry.parsed]
    assert len(below) > 10
    for entry in below:
        words = [f"--{entry.path}", re.split(r"[;)]", entry.text.rpartition("(default: ")[2])[0]]
        if name := re.match(r"For (\w+)", entry.text):
            words = [f"--{entry.path.rpartition('.')[0]}", name[1], *words]
        assert isinstance(read_config(config, "none", None, parse("prog", "A program.", verbs, ["go", *words])), config)


def test_a_misplaced_key_of_a_component_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert agents.main(["train", "--radius", "0.02", "--out", "nowhere"]) == 2
    assert "did you mean '--agent.natural_gradient.step.radius'" in capsys.readouterr().err


@dataclass(frozen=True)
class Checked:
    """Numbers whose ranges only the class knows.

    Attributes:
        share: One.
        rest: Two.
        weight: Three.
        count: Four.
        free: Five.
        odd: Six.
    """

    share: float = 0.5
    rest: float | None = None
    weight: float = 1.0
    count: int = 1
    free: float = 0.0
    odd: float = 5.0

    def __post_init__(self) -> None:
        check_fraction("share", self.share, below_one=False)
        if self.rest is not None:
            check_fraction("rest", self.rest)
        check_positive("weight", self.weight, allow_zero=True)
        check_positive("count", self.count)
        if not 3 < self.odd < 9:
            raise ConfigError("odd must be between 3 and 9")


@dataclass(frozen=True)
class Whole:
    """Whole.

    Attributes:
        part: A part.
        word: A word.
    """

    part: Checked = field(default_factory=Checked)
    word: Annotated[str, Form("[a-z]+", "a word in small letters")] = "x"


def test_ranges_are_those_of_the_class_and_unknown_ones_are_not_made_up() -> None:
    legal: dict[str, Any] = {entry.path: entry.text.partition("Legal: ")[2].partition(" (default")[0] for entry in entries(Whole)}
    assert legal == {
        "part.share": "a number in (0, 1]",
        "part.rest": "a number in [0, 1) or null",
        "part.weight": "a number >= 0",
        "part.count": "a whole number >= 1",
        "part.free": "a number",
        "part.odd": "a number",
        "word": "a word in small letters",
    }
    assert entries(Whole)[0] == Entry("part", "part.share", "One. Legal: a number in (0, 1] (default: 0.5)")


def test_a_text_of_another_form_is_refused() -> None:
    options = parse("prog", "A program.", {"go": Verb(verb_parser("go", "Go.", Whole), "go", Whole)}, ["go", "--word", "ABC"])
    with pytest.raises(ConfigError, match=r"word \(command line\): got 'ABC'; legal: a word in small letters"):
        read_config(Whole, "none", None, options)
