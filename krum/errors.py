"""The one error for bad input, and the "did you mean" that goes with it."""

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches

if not hasattr(sys.modules["krum"], "PROJECT"):
    raise ImportError(
        "another package named krum has overwritten files of krum-experiments; "
        "uninstall both, then install the one you want"
    )

LONGEST = 600  # characters of a message


class InputError(ValueError):
    """Something the user gave cannot work. The message is one line: where, what was found, what would do."""

    def __init__(self, message: str):
        line = " ".join(message.split())  # what was found may have lines of its own, such as a tensor
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ...")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Begin the message of an InputError with the place that is wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def unknown(what: str, found: object, known: Collection[str], synonyms: Mapping[str, str] | None = None) -> str:
    """One line for an unknown name, with the nearest known one; `synonyms` are other words for the known ones."""
    words = {**(synonyms or {}), **{name: name for name in known}}
    near = get_close_matches(str(found), words, n=1, cutoff=0.5)
    hint = f"did you mean {words[near[0]]!r}? " if near else ""
    if found is None and "none" in known:
        hint = "did you mean 'none'? "
    return f"unknown {what} {found!r:.60}; {hint}(known: {', '.join(known) or 'none at all'})"
