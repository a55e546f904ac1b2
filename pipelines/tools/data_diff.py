"""What differs between the data of two experiments: `make data-diff A=NAME [B=NAME]`.

A and B are experiments, commits, branches or tags; B defaults to this workspace. Images are found again by their name
or by their pixels. data/data_diff.html shows pictures of those that differ.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.api import DVCFileSystem

from pipelines.tools.revisions import HERE, reader, reading
from refit.artifacts.paths import DATA_DIFF, PREPARED
from refit.artifacts.prepared import ManifestRow, pixels_in, read_manifest
from refit.data.diff import KINDS, Difference, differences
from refit.reports.data_diff import write_data_diff
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

_WHAT = "prepared data"
_LISTED = 10  # of each kind


def main(first: str, second: str) -> None:
    """Raises UserError if there is no `first`, or a revision has no prepared data."""
    if not first:
        raise UserError(
            "A is missing: the experiment, commit, branch or tag whose data to compare with those in this folder, as "
            "in: make data-diff A=HEAD"
        )
    before, after = manifest_of(first), manifest_of(second)
    found = differences(before, after)
    print("\n".join(as_lines(first, second, before, after, found)))
    if found:
        with prepared_at(first) as a, prepared_at(second) as b:
            write_data_diff(DATA_DIFF, (first, second), found, pixels_in(a, before), pixels_in(b, after))
        print(f"pictures: {DATA_DIFF}")


def changes_since(revision: str) -> str:
    """How the data of this workspace differ from those of a revision, in Markdown; empty if one of them has none."""
    with suppress(UserError):
        before, after = manifest_of(revision), manifest_of(HERE)
        return "\n".join(["```", *as_lines(revision, HERE, before, after, differences(before, after)), "```", ""])
    return ""


def manifest_of(revision: str) -> list[ManifestRow]:
    """The images of a revision. Raises UserError if it has none."""
    with reading(revision, _WHAT):
        return read_manifest(io.BytesIO(reader(revision)(PREPARED / "manifest.parquet")))


@contextmanager
def prepared_at(revision: str) -> Iterator[Path]:
    """The prepared data of a revision, in a temporary folder unless it is that of the workspace."""
    if revision == HERE:
        yield PREPARED
        return
    with TemporaryDirectory() as folder:
        with reading(revision, _WHAT):
            DVCFileSystem(rev=revision).get(str(PREPARED), folder, recursive=True)
        yield Path(folder, PREPARED.name)


def as_lines(
    first: str, second: str, before: Sequence[ManifestRow], after: Sequence[ManifestRow], found: Sequence[Difference]
) -> list[str]:
    lines = ["Data", f"  A            {first}: {_counts(before)}", f"  B            {second}: {_counts(after)}"]
    if not found:
        return [*lines, "  differences  none"]
    by_kind = {kind: of_kind for kind in KINDS if (of_kind := [one.describe() for one in found if one.kind == kind])}
    lines += [f"  {kind:<11}  {len(of_kind):,}: {KINDS[kind]}" for kind, of_kind in by_kind.items()]
    for kind, of_kind in by_kind.items():
        more = [f"  and {len(of_kind) - _LISTED:,} more"] if len(of_kind) > _LISTED else []
        lines += ["", kind.capitalize(), *(f"  {text}" for text in of_kind[:_LISTED]), *more]
    return lines


def _counts(rows: Sequence[ManifestRow]) -> str:
    splits = Counter(row.split for row in rows)
    classes = len({row.label for row in rows})
    return f"{', '.join(f'{count:,} {split}' for split, count in splits.items())} images of {classes:,} classes"


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("first", metavar="A", nargs="?", default="", help="an experiment, commit, branch or tag")
    parser.add_argument("second", metavar="B", nargs="?", default=HERE, help="another one; this workspace by default")
    run_command(main, parser)
