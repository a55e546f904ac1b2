"""Raw images → one packed data set with train, validation and test splits."""

import shutil
from collections import Counter
from pathlib import Path

from refit.artifacts.checked import checked_hash, stage_params
from refit.artifacts.decisions import read_decisions
from refit.artifacts.files import whole_folder, write_csv, write_json
from refit.artifacts.metrics import write_data_metrics
from refit.artifacts.paths import DECISIONS, PREPARED, PREPARED_LEFT_OUT, PREPARED_PAGE, PREPARED_REPORT, PREPARING
from refit.artifacts.prepared import read_manifest, read_split
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.params import Params
from refit.reports.data_report import write_data_report
from refit.runtime.stage import run_stage


def main(params: Params) -> None:
    source, decisions = open_source(params.data), read_decisions()
    with whole_folder(PREPARED) as folder:
        packed = pack(source, params.data, params.seed, folder, decisions, _decoded_in())
    shutil.rmtree(PREPARING, ignore_errors=True)
    info, left_out = packed.info, packed.left_out
    write_json(PREPARED_REPORT, packed.report)
    write_csv(PREPARED_LEFT_OUT, left_out, ["file", "why"])  # DVC warns of an empty file
    write_data_metrics(params.data, len(packed.obeyed))
    write_data_report(PREPARED_PAGE, packed, read_split("train", mapped=True), read_manifest())
    if packed.obeyed:
        kinds = Counter(decision.kind for decision in packed.obeyed)
        print(f"{DECISIONS} is obeyed: {', '.join(f'{kinds[kind]:,} {kind}' for kind in sorted(kinds))}")
    if left_out:
        count = "1 file is" if len(left_out) == 1 else f"{len(left_out):,} files are"
        print(f"{count} left out; {PREPARED_LEFT_OUT} has each with the reason")
    counts = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
    print(f"prepared {info.source}: {counts} images of {len(info.classes)} classes, {'x'.join(map(str, info.shape))}")
    print(f"what is in it: {PREPARED_PAGE}")


def _decoded_in() -> Path | None:
    """The folder for decoded images, without those of other code or parameters."""
    current = checked_hash("prepare")
    for folder in PREPARING.iterdir() if PREPARING.exists() else ():
        if folder.name != current:
            shutil.rmtree(folder)
    return PREPARING / current if current else None


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("prepare")))
