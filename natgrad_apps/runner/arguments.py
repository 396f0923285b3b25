"""The command line of a runner: every key of its configuration is an option, ``--agent.n_steps 20``.

`jsonargparse` splits the line and prints the help; values stay text and go through `natgrad_apps.runner.schema`, so that the file and the
command line obey one set of rules.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from natgrad_apps._resources import available_configs
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import hints, schema, schema_help
from natgrad_apps.runner.yaml_text import Node, Table, merge, read_value, read_yaml

T = TypeVar("T")
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Verb:
    """One verb of a runner.

    Attributes:
        parser: Its options.
        summary: One line for the help text.
        config: Dataclass whose keys are options too, or None.
    """

    parser: ArgumentParser
    summary: str
    config: type | None = None


@dataclass(frozen=True)
class Options:
    """The parsed options of one verb.

    Attributes:
        verb: The verb.
        values: Options that are no settings, by name without dashes.
        settings: Text of the settings given, by dotted key.
    """

    verb: str
    values: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """The value of an option, None if it was not given."""
        value = self.values.get(name)
        return None if value is None else str(value)

    def flag(self, name: str) -> bool:
        """Whether a switch was given."""
        return bool(self.values.get(name))

    def number(self, name: str, hint: Any) -> Any:
        """The value of an option, read by the rules of the schema; None if it was not given.

        Args:
            name: The option.
            hint: Its type, such as ``Annotated[int, Range(low=1)]``.

        Raises:
            ConfigError: The text does not fit.
        """
        text = self.text(name)
        return None if text is None else schema.read_scalar(hint, read_value(text, COMMAND_LINE), f"--{name}")

    def paths(self, name: str) -> list[Path]:
        """The values of a positional argument that takes several."""
        return [Path(item) for item in self.values.get(name) or []]


def verb_parser(usage: str, description: str, config: type | None = None) -> ArgumentParser:
    """A parser with one option for each key of a configuration, whose errors are exceptions.

    Args:
        usage: The command in one line.
        description: First lines of the help text.
        config: The dataclass of the configuration, None for no settings.
    """
    parser = _parser(usage=usage, description=description)
    groups: dict[str, Any] = {}
    for entry in schema_help.entries(config) if config is not None else ():
        section, option, text = entry.section, f"--{entry.path}", entry.text.replace("%", "%%")
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}" if section else "settings")
        if entry.parsed:
            groups[section].add_argument(option, type=str, metavar="VALUE", help=text)
        else:  # `_take_below_mappings` takes it off the line before the parser sees it
            groups[section]._group_actions.append(argparse.Action([option], entry.path, metavar="VALUE", help=text))
    return parser


def parse(program: str, description: str, verbs: Mapping[str, Verb], argv: Sequence[str]) -> Options:
    """Split a command line.

    Args:
        program: Name of the console script.
        description: What it does.
        verbs: The verbs by name.
        argv: The words after the program's name.

    Raises:
        ConfigError: The verb or an option is unknown, or an option lacks its value.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise ConfigError(f"unknown verb {argv[0]!r}; available: {', '.join(verbs)}{_nearest(argv[0], verbs)}")
    words, below = _take_below_mappings(verbs, argv)
    parser = _parser(prog=program, description=description)
    subcommands = parser.add_subcommands(required=False, dest="verb")
    for name, verb in verbs.items():
        subcommands.add_subcommand(name, verb.parser, help=verb.summary)
    try:
        namespace = parser.parse_args(words)
    except ArgumentError as error:
        raise ConfigError(f"{_as_in_help(str(error), argv[0], verbs)}; --help tells more") from error
    name = str(namespace.get("verb"))
    if name not in verbs:
        raise ConfigError(f"a verb is needed; available: {', '.join(verbs)}")
    options = namespace[name]
    assert isinstance(options, Namespace)
    config = verbs[name].config
    keys = [key.path for key in schema.keys(config)] if config is not None else []
    settings = {path: str(options[path]) for path in keys if options.get(path) is not None}
    own = {key: value for key, value in vars(options).items() if not isinstance(value, Namespace) and key not in keys}
    return Options(name, own, {**settings, **below})


def read_config(cls: type[T], kind: str, name: str | None, options: Options, above: Table | None = None) -> T:
    """The configuration of a run: defaults, then the file, then settings of another source, then the command line.

    Args:
        cls: The dataclass of the configuration; every key has a default.
        kind: Kind of the presets, such as ``"agents"``.
        name: A path, the name of a preset, or None for the defaults.
        options: What the command line gave.
        above: Settings that stand over the file's, None for none.

    Raises:
        ConfigError: The file cannot be read, or the configuration is not legal.
    """
    tree = schema.to_tree(cls(), "defaults")
    if name is not None:
        tree = merge(tree, read_file(find_config(kind, name)))
    if above is not None:
        tree = merge(tree, above)
    for path, text in options.settings.items():
        node: Node = read_value(text, COMMAND_LINE)
        for part in reversed(path.split(".")):
            node = Table({part: node}, COMMAND_LINE)
        assert isinstance(node, Table)
        tree = merge(tree, node)
    return schema.read(cls, tree)


def read_file(path: Path) -> Table:
    """Read a configuration file.

    Raises:
        ConfigError: It cannot be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {str(path)!r} cannot be read: {error}") from error
    return read_yaml(text, path.name)


def find_config(kind: str, name: str) -> Path:
    """The file that a path or the name of a preset stands for.

    Raises:
        ConfigError: There is none; the message names the nearest preset.
    """
    path = Path(name)
    if path.is_dir():
        inside = path / "config.yaml"
        hint = f"; for the settings of that run give {str(inside)!r}" if inside.is_file() else ""
        raise ConfigError(f"--config {name!r} is a folder; a YAML file or the name of a preset is needed{hint}")
    if path.exists():
        return path
    presets = available_configs(kind)
    if name in presets:
        return presets[name]
    raise ConfigError(f"--config {name!r} is neither a file nor a preset; presets: {', '.join(presets)}{_nearest(path.stem, presets)}")


def _parser(**arguments: Any) -> ArgumentParser:
    # The plain formatter leaves out jsonargparse's own notes on type and default, because every value is text to it; its own --print_config
    # would print that text.
    return ArgumentParser(exit_on_error=False, default_env=False, print_config=None, formatter_class=argparse.HelpFormatter, **arguments)


def _take_below_mappings(verbs: Mapping[str, Verb], argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate options below a key that holds a mapping (``--environment.kwargs.gravity 10``), and refuse unknown options."""
    words, below = list(argv), dict[str, str]()
    verb = verbs.get(argv[0]) if argv else None
    if verb is None:
        return words, below
    legal = {name for action in verb.parser._actions for name in action.option_strings}
    mappings = [f"--{key.path}." for key in schema.keys(verb.config) if hints.takes_mapping(key.hint)] if verb.config is not None else []
    rest = words[:1]
    queue = words[1:]
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *queue]
            break
        if name.startswith("--") and name not in legal:
            if not any(name.startswith(prefix) for prefix in mappings):
                known = legal | {f"--{entry.path}" for entry in schema_help.entries(verb.config)} if verb.config is not None else legal
                raise ConfigError(f"unknown option {name} of {words[0]!r}{_nearest(name, known)}; --help lists all")
            if not equals and not queue:
                raise ConfigError(f"option {name} needs a value")
            below[name[2:]] = value if equals else queue.pop(0)
        else:
            rest.append(word)
    return rest, below


def _as_in_help(message: str, verb: str, verbs: Mapping[str, Verb]) -> str:
    """A message of the parser in one line, with positional arguments called what the help calls them."""
    for action in verbs[verb].parser._actions if verb in verbs else []:
        if not action.option_strings and isinstance(action.metavar, str):
            message = message.replace(f"{verb}.{action.dest}", action.metavar)
    return " ".join(message.split())


def _nearest(given: str, legal: Iterable[str]) -> str:
    names = sorted(legal, key=lambda name: (len(name), name))
    # The last part counts most: --n_steps finds --agent.n_steps.
    near = [n for n in names if n.rpartition(".")[2] == given.lstrip("-")] or difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
