"""What becomes of an image's pixels on the way to the network: the same in every stage and command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor

from refit.artifacts.checked import stage_params
from refit.artifacts.files import read_json
from refit.artifacts.model import read_record
from refit.artifacts.paths import BATCH, MODEL
from refit.artifacts.prepared import read_hashes, read_info
from refit.commands.promote import predictions_of
from refit.inference.predictor import Predictor
from refit.params import load_params
from refit.params.data import Resize
from refit.systems.classifier import Classifier
from refit.tracking.registry import Version
from stages import check, find_lr, predict, prepare, scale_batch
from tests.fixtures import Fit, Values, run_test, watched_by
from tests.integration.test_resume import PowerCutError, Witness, same

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


class Sizes(Callback):
    """The sizes of the images that the system is given."""

    def __init__(self) -> None:
        self.trained: set[tuple[int, ...]] = set()
        self.validated: set[tuple[int, ...]] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.trained.add(tuple(batch.images.shape[1:]))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.validated.add(tuple(batch.images.shape))


CROPPED = {"augment__flip": True, "augment__crop_area": 0.7}


@pytest.mark.parametrize(
    "keys", [{}, CROPPED, {"fit__averaging": "swa"}, {"augment__mixup": 0.2, "augment__cutmix": 1.0}]
)
def test_a_network_is_trained_at_one_size_and_validated_tested_and_used_at_a_larger_one(
    keys: dict[str, Any], ends: Path, fitted: Fit, values: Values
) -> None:
    prepared(values, **{"data.resize": "squash"})
    sizes = Sizes()
    with watched_by(sizes):
        fitted(fit__max_epochs=20, micro_batch=32, augment__train_size=12, **keys)
    assert sizes.trained == {(3, 12, 12)}
    assert {shape[1:] for shape in sizes.validated} == {(3, 24, 24)}
    assert max(shape[0] for shape in sizes.validated) <= 2 * 32 // 4, "more pixels than memory was measured for"
    record = read_record()
    assert (record.shape, record.batch_size) == ((3, 24, 24), 8)
    run_test()
    assert json.loads(Path("data/evaluation/test.json").read_text())["accuracy"] > 0.9
    truth = [path.parent.name for path in sorted(NEW.rglob("*.png"))]
    found = [prediction.label for prediction in Predictor.load(MODEL).predict(NEW)]
    assert np.mean([one == other for one, other in zip(found, truth, strict=True)]) > 0.9


def test_a_few_images_to_overfit_are_trained_and_validated_at_one_size(fitted: Fit) -> None:
    sizes = Sizes()
    with watched_by(sizes):
        fitted(micro_batch=32, augment__train_size=6, augment__flip=True, debug__overfit_batches=1)
    assert sizes.trained == {(1, 6, 6)}
    assert sizes.validated == {(64, 1, 6, 6)}
    assert read_record().shape == (1, 8, 8)


def test_the_tuning_stages_take_steps_at_the_size_of_training(
    ends: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(values, **{"data.resize": "squash"})
    sizes: set[tuple[int, ...]] = set()
    step = Classifier.training_step

    def watched(self: Classifier, batch: Any, batch_idx: int) -> Any:
        sizes.add(tuple(batch.images.shape[1:]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", watched)
    needed = {}
    for train_size in (None, 12):
        keys = {"model.network": "cnn", "augment.train_size": train_size, "augment.crop_area": 0.5, "batch.size": 32}
        Path("params.yaml").write_text(yaml.safe_dump(values(keys)))
        sizes.clear()
        scale_batch.main(stage_params("scale_batch"))
        needed[train_size] = [trial["bytes"] for trial in read_json(BATCH, "")["tried"]]
        find_lr.main(stage_params("find_lr"))
        assert sizes == {(3, train_size or 24, train_size or 24)}
    assert needed[12][-1] < needed[None][-1] / 2


def test_an_interrupted_fit_at_a_smaller_size_ends_with_the_same_bits(fitted: Fit) -> None:
    keys: dict[str, Any] = {"augment__train_size": 6, "fit__save_state_every": 1e-9, **CROPPED}

    def run(cut_off_in: int | None = None) -> tuple[Witness, dict[str, Tensor]]:
        witness = Witness(cut_off_in)
        with watched_by(witness):
            return witness, fitted(**keys)

    whole, weights = run()
    with pytest.raises(PowerCutError):
        run(20)
    resumed, resumed_weights = run()
    assert min(resumed.drawn) > 10
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)


def test_photos_for_pretrained_weights_are_prepared_trained_and_served_at_their_size(
    ends: Path, fitted: Fit, values: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    """`image_size: auto`, from check to the model."""
    weights = Path("data/weights/photos.safetensors")
    weights.parent.mkdir()
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    model = {"model.network": "timm:test_efficientnet", "model.width": None, "model.dropout": None}
    keys: dict[str, Any] = {"data.source": "folder", "model.weights": str(weights), **model}
    keys |= {"augment.train_size": 64, "debug.limit_train_batches": 2, "fit.max_epochs": 1, "tracking.loggers": []}
    Path("params.yaml").write_text(yaml.safe_dump(values(keys)))
    check.main(load_params())
    assert "data.image_size = auto is 160, the size that data/weights/ph" in capsys.readouterr().out
    prepare.main(stage_params("prepare"))
    assert read_info().shape == [3, 160, 160]
    sizes = Sizes()
    with watched_by(sizes):
        fitted(**{key.replace(".", "__"): value for key, value in keys.items()})
    assert sizes.trained == {(3, 64, 64)}
    assert read_record().shape == (3, 160, 160)
    assert len(Predictor.load(MODEL).predict(NEW)) == 20
