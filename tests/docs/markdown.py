"""What the documentation's tests read out of a Markdown file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\s*$")
# Code that a reader need not see, such as the model that an excerpt uses: an HTML comment whose first word is `setup`.
SETUP = "<!-- setup"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", flags=re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        language: The word behind the opening fence; ``setup`` for hidden code.
        line: Number of its first line of code in the file, from 1.
        code: Its text, without the indentation of the fence.
    """

    language: str
    line: int
    code: str


def documents() -> list[Path]:
    """The pages of the documentation: those at the top and everything in docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str) -> list[Block]:
    """Fenced blocks and hidden set-up code, in their order.

    Args:
        text: A Markdown page.

    Raises:
        ValueError: A block is not closed.
    """
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        hidden = lines[number].startswith(SETUP)
        if fence is None and not hidden:
            number += 1
            continue
        start = number + 1
        closing = "-->" if fence is None else fence["indent"] + "```"
        end = next((i for i in range(start, len(lines)) if lines[i].rstrip() == closing), None)
        if end is None:
            raise ValueError(f"the block that begins in line {start} is not closed by {closing!r}")
        indent = 0 if fence is None else len(fence["indent"])
        code = "\n".join(line[indent:] for line in lines[start:end])
        found.append(Block("setup" if fence is None else fence["language"], start + 1, code))
        number = end + 1
    return found


def without_code(text: str) -> str:
    """The page with its code taken out, in which a bracket is not a link."""
    text = re.sub(r"^ *```.*?^ *```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    return [first or second for first, second in LINK.findall(without_code(text))]


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    plain = re.sub(r"^ *```.*?^ *```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in HEADING.findall(plain)}
