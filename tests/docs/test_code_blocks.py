"""Every Python block of the documentation runs; every shell block names commands, options and files that exist."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from natgrad_apps.agents import cli
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.bayes import cli as bayes_cli
from natgrad_apps.graphs import cli as graph_cli
from natgrad_apps.runner.arguments import parse, read_config
from tests.docs.markdown import ROOT, Block, blocks, documents

PAGES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in documents()]
# `py` is a file that is shown, `python` is code that runs.
LANGUAGES = {"", "bash", "makefile", "markdown", "py", "python", "setup", "text", "toml", "yaml"}


def shell_lines(page: Path) -> list[str]:
    """Commands of the page's shell blocks, continued lines joined, comments and prompts taken off."""
    text = "\n".join(block.code for block in blocks(page.read_text()) if block.language == "bash").replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share their names, as a reader who follows the page expects."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page.read_text()):
        if block.language in {"python", "setup"}:
            # Lines are counted as in the page, so that a traceback points into it.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
            ran += 1
    assert ran == sum(block.language in {"python", "setup"} for block in blocks(page.read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_their_language(page: Path) -> None:
    """A block whose language is misspelt would not be run."""
    unknown = [(block.line, block.language) for block in blocks(page.read_text()) if block.language not in LANGUAGES]
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        word for line in shell_lines(page) if line.startswith("make ") for word in shlex.split(line, comments=True)[1:] if "=" not in word
    }
    named |= set(re.findall(r"`make ([a-z-]+)`", page.read_text()))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_files_in_shell_blocks_exist(page: Path) -> None:
    words = {word for line in shell_lines(page) for word in shlex.split(line, comments=True)}
    named = {word for word in words if re.match(r"(configs|benchmarks|tests|tools|docs)/", word)}
    missing = {word for word in named if not (ROOT / word.split("::")[0]).exists()}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_legal(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options, presets and values of the commands are what their parsers take; nothing is trained."""
    monkeypatch.chdir(ROOT)
    for line in shell_lines(page):
        program, *words = shlex.split(line, comments=True)
        if program == PROGRAM:
            options = parse(PROGRAM, cli.DESCRIPTION, cli._verbs(), words)
            if options.text("config") is not None:
                assert read_config(TrainConfig, cli.KIND, options.text("config"), options)
        for module in (bayes_cli, graph_cli):
            if program == module.PROGRAM:
                options = parse(program, module.DESCRIPTION, module._verbs(), words)
                cls = module._verbs()[options.verb].config
                if cls is not None:
                    assert read_config(cls, module.KIND, options.text("config"), options)


def test_hidden_and_indented_blocks_are_found() -> None:
    page = "<!-- setup\nx = 1\n-->\ntext\n\n1. item\n\n   ```python\n   y = x + 1\n   ```\n"
    assert blocks(page) == [Block("setup", 2, "x = 1"), Block("python", 9, "y = x + 1")]


def test_open_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 3 is not closed"):
        blocks("# title\n\n```python\nx = 1\n")


def test_readme_has_python_blocks() -> None:
    """The guard of the guard: no page would be run if the blocks were not found."""
    assert any(block.language == "python" for block in blocks((ROOT / "README.md").read_text()))
    assert os.path.exists(ROOT / "docs" / "architecture.md")
