"""The source's listing as people decided in data/audit.csv: images dropped, and images with another class."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from refit.artifacts.decisions import Decision
from refit.artifacts.files import as_text
from refit.artifacts.paths import DECISIONS
from refit.data.sources.source import Item, LeftOut, Listing
from refit.runtime.errors import UserError

LISTED = 20  # decisions about files that are gone, in the warning
_NEAR = 0.75  # of two names, by difflib


class Decided(NamedTuple):
    listing: Listing
    obeyed: Sequence[Decision]
    gone: Sequence[Decision]
    """About files that the source does not have."""


def as_decided(listing: Listing, decisions: Sequence[Decision]) -> Decided:
    """The listing without the dropped images, which it has among those left out, and with the new classes.

    A file with a fault can be dropped too. Raises UserError for a class that the source does not have.
    """
    faulty = {as_text(gone.name) for gone in listing.left_out if gone.fault}
    known = {as_text(item.name) for item in listing.items} | faulty
    for decision in decisions:
        if decision.kind == "relabel" and decision.label not in listing.classes:
            raise UserError(
                f"{decision}: {decision.label!r} is not one of the classes {', '.join(listing.classes)}; correct it"
            )
    about = {decision.file: decision for decision in decisions if decision.file in known}
    gone = [decision for decision in decisions if decision.file not in known]
    dropped = {decision.file for decision in about.values() if decision.kind == "drop"}
    items = [_relabelled(item, about, listing.classes) for item in listing.items if as_text(item.name) not in dropped]
    names = [item.name for item in listing.items] + [gone.name for gone in listing.left_out if gone.fault]
    left_out = [gone for gone in listing.left_out if as_text(gone.name) not in dropped]
    left_out += [LeftOut(name, _why(about[as_text(name)])) for name in names if as_text(name) in dropped]
    return Decided(replace(listing, items=items, left_out=left_out), [*about.values()], gone)


def warning_of_gone(gone: Sequence[Decision], items: Iterable[Item], obeyed: Iterable[Decision]) -> str:
    """The warning about decisions on files that the source does not have: a file may have been deleted on purpose, or
    its name be mistyped. Names the line of each, and the near name of an image that is not decided about."""
    undecided = {as_text(item.name) for item in items} - {decision.file for decision in obeyed}
    by_numbers: dict[tuple[int, ...], dict[str, str]] = {}  # then by the name in lower case
    for name in sorted(undecided):
        by_numbers.setdefault(_numbers(name), {})[name.lower()] = name
    several = len(gone) != 1
    lines = [
        f"warning: {DECISIONS}: {len(gone):,} decision{'s are' if several else ' is'} about "
        f"{'files' if several else 'a file'} that the source does not have, and without effect; if no name is "
        f"mistyped, delete the line{'s' if several else ''}"
    ]
    for decision in gone[:LISTED]:
        # The neighbour of a deleted image differs from it in its number: it is no other spelling.
        names = by_numbers.get(_numbers(decision.file), {})
        near = difflib.get_close_matches(decision.file.lower(), names, 1, _NEAR)
        lines.append(f"  line {decision.row}: {decision.file}{f'; did you mean {names[near[0]]}?' if near else ''}")
    if len(gone) > LISTED:
        lines.append(f"  and {len(gone) - LISTED:,} more")
    return "\n".join(lines)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall("[0-9]+", name)))


def _relabelled(item: Item, about: dict[str, Decision], classes: Sequence[str]) -> Item:
    decision = about.get(as_text(item.name))
    if decision is None or decision.kind != "relabel":
        return item
    return replace(item, label=classes.index(decision.label))


def _why(decision: Decision) -> str:
    return f"dropped by {DECISIONS}{': ' if decision.why else ''}{decision.why}"
