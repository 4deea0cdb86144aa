"""How the program speaks of a user's mistake: one clear sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave (recipe, file, argument). The message is one sentence that
    names the file, line or key and says what would be right; the command line prints it as it is."""


def in_short(error: BaseException, longest: int = 160) -> str:
    """What an error of a library says, on a line that can be read: its class and the beginning of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:longest]}{'…' if len(text) > longest else ''}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ``did you mean 'steps'?``, or the names there are."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(known)}." if known else "nothing is known by any name here."
