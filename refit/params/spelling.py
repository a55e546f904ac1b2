"""Suggestions for misspelt names."""

import difflib


def nearest(name: str, known: list[str], lead: str = "") -> str:
    """The end of an error about an unknown name: `; did you mean X?` with the most similar known name, led by `lead`.
    Empty if no known name is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {lead}{close[0]}?" if close else ""
