"""The source's listing as people decided in data/audit.csv: images dropped, and images with another class."""

from collections.abc import Sequence
from dataclasses import replace

from refit.artifacts.decisions import Decision
from refit.artifacts.files import as_text
from refit.artifacts.paths import DECISIONS
from refit.data.sources.source import Item, LeftOut, Listing
from refit.params.spelling import nearest
from refit.runtime.errors import UserError


def as_decided(listing: Listing, decisions: Sequence[Decision]) -> Listing:
    """The listing without the dropped images, which it has among those left out, and with the new classes.

    A file with a fault can be dropped too. Raises UserError for a file or a class that the source does not have.
    """
    if not decisions:
        return listing
    about = {decision.file: decision for decision in decisions}
    faulty = {as_text(gone.name) for gone in listing.left_out if gone.fault}
    known = {as_text(item.name) for item in listing.items} | faulty
    for decision in decisions:
        if decision.file not in known:
            near = nearest(decision.file, sorted(known))
            raise UserError(f"{decision}: the source has no such image{near}; correct the name, or delete the line")
        if decision.kind == "relabel" and decision.label not in listing.classes:
            raise UserError(
                f"{decision}: {decision.label!r} is not one of the classes {', '.join(listing.classes)}; correct it"
            )
    dropped = {decision.file for decision in decisions if decision.kind == "drop"}
    items = [_relabelled(item, about, listing.classes) for item in listing.items if as_text(item.name) not in dropped]
    names = [item.name for item in listing.items] + [gone.name for gone in listing.left_out if gone.fault]
    left_out = [gone for gone in listing.left_out if as_text(gone.name) not in dropped]
    left_out += [LeftOut(name, _why(about[as_text(name)])) for name in names if as_text(name) in dropped]
    return replace(listing, items=items, left_out=left_out)


def _relabelled(item: Item, about: dict[str, Decision], classes: Sequence[str]) -> Item:
    decision = about.get(as_text(item.name))
    if decision is None or decision.kind != "relabel":
        return item
    return replace(item, label=classes.index(decision.label))


def _why(decision: Decision) -> str:
    return f"dropped by {DECISIONS}{': ' if decision.why else ''}{decision.why}"
