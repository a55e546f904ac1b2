"""What becomes of an image's pixels on the way to the network: the same in every stage and command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from refit.artifacts.checked import stage_params
from refit.artifacts.model import read_record
from refit.artifacts.paths import MODEL
from refit.artifacts.prepared import read_hashes, read_info
from refit.commands.promote import predictions_of
from refit.inference.predictor import Predictor
from refit.params import load_params
from refit.params.data import Resize
from refit.tracking.registry import Version
from stages import predict, prepare
from tests.fixtures import Fit, Values

RIVAL = Version("refit", "7", "c" * 64, "run", was_champion=True)
NEW = Path("data/new")


@pytest.fixture
def ends(workspace: Path) -> Path:
    """Photos of 48 x 16 pixels that differ by class in the colour of their ends alone."""
    random, root = np.random.default_rng(0), workspace / "data/raw"
    for folder, images in {root: 60, NEW: 10}.items():
        for channel, name in enumerate(("red", "green")):
            (folder / name).mkdir(parents=True)
            for number in range(images):
                pixels = random.integers(100, 256, (16, 48, 3), dtype=np.uint8)
                for end in (slice(0, 14), slice(-14, None)):
                    pixels[:, end, [1 - channel, 2]] //= 4
                Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return root


def prepared(values: Values, **keys: object) -> None:
    changed = values({"data.source": "folder", "data.root": "data/raw", "data.image_size": 24, **keys})
    Path("params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    prepare.main(stage_params("prepare"))


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_new_images_are_resized_as_those_that_the_model_was_trained_on(
    resize: Resize, ends: Path, fitted: Fit, values: Values
) -> None:
    """By the stage `predict`, by `Predictor` and by `promote`; only whole images show the classes."""
    prepared(values, **{"data.resize": resize})
    keys: dict[str, Any] = {"data__source": "folder", "data__image_size": 24}
    fitted(fit__max_epochs=15, micro_batch=32, data__resize=resize, **keys)
    record = read_record()
    assert (record.resize, record.shape) == (resize, (3, 24, 24))

    truth = [path.parent.name for path in sorted(NEW.rglob("*.png"))]
    found = [prediction.label for prediction in Predictor.load(MODEL).predict(NEW)]
    accuracy = np.mean([one == other for one, other in zip(found, truth, strict=True)])
    assert accuracy < 0.9 if resize == "crop" else accuracy == 1
    predict.main(stage_params("predict"))
    lines = Path("data/predictions/predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == found

    own = predictions_of(MODEL, RIVAL, load_params())
    assert own[2] == read_hashes("test")
    prepared(values, **{"data.resize": "squash" if resize == "crop" else "crop"})  # the challenger's way
    assert read_info().resize != resize
    assert predictions_of(MODEL, RIVAL, load_params()) == own
