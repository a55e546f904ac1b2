"""Raw images → one packed data set with train, validation and test splits."""

from refit.artifacts.checked import stage_params
from refit.artifacts.files import whole_folder, write_json
from refit.artifacts.metrics import write_data_metrics
from refit.artifacts.paths import PREPARED, PREPARED_REPORT
from refit.data.pack import pack
from refit.data.sources import open_source
from refit.params import Params
from refit.runtime.stage import run_stage


def main(params: Params) -> None:
    source = open_source(params.data)
    with whole_folder(PREPARED) as folder:
        info, report = pack(source, params.data, params.seed, folder)
    write_json(PREPARED_REPORT, report)
    write_data_metrics(params.data)
    counts = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
    print(f"prepared {info.source}: {counts} images of {len(info.classes)} classes, {'x'.join(map(str, info.shape))}")


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("prepare")))
