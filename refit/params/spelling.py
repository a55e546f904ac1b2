"""Suggestions for misspelt names."""

import difflib


def nearest(name: str, known: list[str], lead: str = "") -> str:
    """The end of an error about an unknown name: `; did you mean X?` with the most similar known name, led by `lead`.
    Empty if no known name is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {lead}{close[0]}?" if close else ""


def nearest_network(name: str, ours: list[str], torchvision: str, timm: str) -> str:
    """As nearest, among our networks and those of the libraries, which are led by the prefixes `torchvision` and `timm`
    and take seconds to import. Of two networks of the same name torchvision's is suggested."""
    from timm import list_models
    from torchvision import models

    theirs = dict.fromkeys(list_models(), timm) | dict.fromkeys(models.list_models(module=models), torchvision)
    if name not in theirs and (near := nearest(name, ours)):
        return near
    close = difflib.get_close_matches(name, theirs, n=1, cutoff=0.5)
    return f"; did you mean {theirs[close[0]]}{close[0]}?" if close else ""
