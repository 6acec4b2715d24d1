"""What another library's error says, in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_line(error: BaseException) -> str:
    """Return the name of an error's type, and the first line of its text if it has one."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
