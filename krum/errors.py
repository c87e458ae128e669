"""The one error for bad input, and the "did you mean" that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: where, what was found, what would do."""


def unknown(what: str, found: object, known: Iterable[str]) -> str:
    """One line for an unknown name, with the nearest known one."""
    names = list(known)
    near = get_close_matches(str(found), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if found is None and "none" in names:
        hint = "did you mean 'none'? "
    return f"unknown {what} {found!r}; {hint}(known: {', '.join(names) or 'none at all'})"
