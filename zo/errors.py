"""The one error that a user's mistake raises, and the words it is made of.

The command line prints a :class:`UserError` as one line and exits with 2; the Snakefile exits
with the same line. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A value that someone can correct; the message names it, and what is allowed instead."""


FEW = 20
"""Names that one can read in a line: more are listed only where none is near."""


def suggest(value: object, allowed: Iterable[str], listed_by: str | None = None) -> str:
    """Say what is allowed instead of ``value``: the nearest match first, then all of them if they are few.

    Of many without a match all are named too, but where ``listed_by`` says what lists them.
    """
    names = [str(name) for name in allowed]
    by_lowercase = {name.lower(): name for name in names}
    near = get_close_matches(str(value).lower(), by_lowercase, n=1)
    hint = f"did you mean {by_lowercase[near[0]]!r}? " if near else ""
    if len(names) > FEW and (hint or listed_by):
        return hint.strip() or f"{listed_by} lists what is allowed"
    return f"{hint}allowed: {', '.join(names)}"


def unknown(kind: str, value: object, allowed: Iterable[str]) -> UserError:
    """Make the error for a name that is not one of ``allowed``."""
    return UserError(f"unknown {kind} {value!r}: {suggest(value, allowed)}")
