"""Raw images → one packed, split and described data set."""

from pathlib import Path

from refit.artifacts.files import whole_folder, write_json
from refit.artifacts.prepared import PREPARED
from refit.data.pack import pack
from refit.data.sources import open_source
from refit.params import Params, load_params
from refit.runtime.stage import run_stage

READS = ("seed", "data")
REPORT = Path("data/prepared_report.json")


def main(params: Params) -> None:
    source = open_source(params.data)
    with whole_folder(PREPARED) as folder:
        info, report = pack(source, params.data, params.seed, folder)
    write_json(REPORT, report)
    counts = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
    print(f"prepared {info.source}: {counts} images of {len(info.classes)} classes, {'x'.join(map(str, info.shape))}")


if __name__ == "__main__":
    run_stage(lambda: main(load_params().only(*READS)))
