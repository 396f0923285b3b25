"""Numbers, counts and errors as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """A return or the like: two decimals, and four digits where those would be none or one of many; rounding errors are 0.00."""
    return f"{value:.4g}" if 1e-6 < abs(value) < 0.01 or abs(value) >= 1e7 else f"{value:.2f}"


def one_line(error: BaseException, empty: str | None = None) -> str:
    """The message of an error on one line.

    Args:
        error: Anything that was raised.
        empty: Stands for a message without a text; None for the name of its type.
    """
    return " ".join(str(error).split()) or (type(error).__name__ if empty is None else empty)


def counted(count: int, noun: str) -> str:
    """A number of things, in the singular or plural."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
