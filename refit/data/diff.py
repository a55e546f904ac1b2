"""What differs between two prepared data sets: images added, removed, changed, relabelled, or moved between splits."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from refit.artifacts.prepared import ManifestRow

Kind = Literal["added", "removed", "changed", "renamed", "relabelled", "moved"]
KINDS: dict[Kind, str] = {
    "added": "only in B",
    "removed": "only in A",
    "changed": "other pixels under the same name",
    "renamed": "the same pixels under another name",
    "relabelled": "another class",
    "moved": "another split",
}


class Difference(NamedTuple):
    kind: Kind
    before: ManifestRow | None
    """The image in A; None if it was added."""
    after: ManifestRow | None
    """The image in B; None if it was removed."""

    def describe(self) -> str:
        before, after = self.before, self.after
        if before is None or after is None:
            row = after or before
            assert row is not None
            return f"{row.name} ({row.label}, {row.split})"
        return {
            "changed": f"{after.name} ({after.label}, {after.split})",
            "renamed": f"{before.name} -> {after.name}",
            "relabelled": f"{after.name}: {before.label} -> {after.label}",
            "moved": f"{after.name}: {before.split} -> {after.split}",
        }[self.kind]


def differences(a: Sequence[ManifestRow], b: Sequence[ManifestRow]) -> list[Difference]:
    """From A to B, by kind and name. An image that is relabelled and moved is in the list twice. If all images have
    other pixels, they were prepared otherwise, such as at another size; then names alone are compared."""
    before, after = {row.name: row for row in a}, {row.name: row for row in b}
    common = before.keys() & after.keys()
    changed = {name for name in common if before[name].sha256 != after[name].sha256}
    if changed == common:
        changed = set()
    found = [Difference("changed", before[name], after[name]) for name in changed]
    removed = {before[name].sha256: before[name] for name in sorted(before.keys() - common, reverse=True)}
    gone = set(before.keys() - common)
    for name in sorted(after.keys() - common):
        twin = removed.pop(after[name].sha256, None)
        if twin is None:
            found.append(Difference("added", None, after[name]))
            continue
        gone.discard(twin.name)
        found += [Difference("renamed", twin, after[name]), *_of_pair(twin, after[name])]
    found += [Difference("removed", before[name], None) for name in gone]
    for name in common:
        found += _of_pair(before[name], after[name])
    return sorted(found, key=lambda one: (list(KINDS).index(one.kind), one.describe()))


def _of_pair(before: ManifestRow, after: ManifestRow) -> list[Difference]:
    found = [Difference("relabelled", before, after)] if before.label != after.label else []
    return found + ([Difference("moved", before, after)] if before.split != after.split else [])
