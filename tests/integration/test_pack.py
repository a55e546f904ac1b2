"""Each process packs the prepared data set to identical bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.fixtures import Values
from tests.processes import PATIENCE
from tests.unit.data.test_pack import contents, photos

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_pack_the_same_images_to_identical_bytes_from_any_folder(values: Values, tmp_path: Path) -> None:
    running = []
    for number, root in enumerate(("here/photos", "another/place/photos")):
        workspace = tmp_path / str(number)
        photos(workspace / root, sizes=((12, 12), (20, 15)))
        (workspace / "params.yaml").write_text(
            yaml.safe_dump(values({"data.source": "folder", "data.root": root, "data.image_size": 16}))
        )
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "stages.prepare"]
        running.append(subprocess.Popen(command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL))
    assert [process.wait(PATIENCE) for process in running] == [0, 0]
    first, second = (contents(tmp_path / str(number) / "data") for number in range(2))
    assert len(first) == 12
    assert first == second
    assert json.loads((tmp_path / "0/data/metrics/data.json").read_text()) == {"data": "photos"}
