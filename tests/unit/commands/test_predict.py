"""`python -m refit.predict` and `Predictor` on any files. test_doors.py in tests/integration checks their answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refit.artifacts.model import write_model
from refit.artifacts.paths import MODEL
from refit.artifacts.prepared import read_info
from refit.inference.predictor import Predictor
from refit.params import Params
from refit.predict import main
from refit.runtime.errors import UserError
from refit.systems.build import blueprint_of, build_system


@pytest.fixture
def photos(workspace: Path, digits: Path, params: Params) -> Path:
    """A folder of images, next to a model and nothing else: no params.yaml, no prepared data."""
    info = read_info(digits)
    weights = build_system(params.model, info).state_dict()
    write_model(weights, blueprint_of(params.model, info), data_sha256=info.sha256, batch_size=2, params={})
    folder = workspace / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.png", "more/c.png", "d.bmp", "e.png"]):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_each_file_gets_a_prediction_in_order_and_a_folder_means_its_images(photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    given = [photos / "e.png", photos, photos / "gone.png", photos / "e.png"]
    predictions = Predictor.load(MODEL).predict(given)
    names = ["e.png", "a.png", "b.png", "broken.jpg", "d.bmp", "e.png", "more/c.png", "gone.png", "e.png"]
    assert [prediction.file for prediction in predictions] == [photos / name for name in names]
    assert {p.file.name: p.error for p in predictions if p.error} == {
        "broken.jpg": "not a recognised image format",
        "gone.png": "No such file or directory",
    }
    assert predictions[0] == predictions[5] == predictions[8]
    for prediction in predictions:
        if prediction.error:
            assert (prediction.label, prediction.probability) == (None, 0)
            continue
        (alone,) = Predictor.load(str(MODEL)).predict(str(prediction.file))
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert Predictor.load(MODEL).predict([]) == []


def test_a_file_that_is_not_an_image_gives_one_error_line_and_the_others_are_predicted(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "notes.txt").touch()
    main([photos], MODEL, as_csv=False)
    told = capsys.readouterr()
    assert told.err.startswith(f"warning: {photos}: left out notes.txt: its name does not end in .bmp")
    head, *lines = told.out.splitlines()
    assert head.split() == ["file", "prediction", "probability", "next"]
    names = ["a.png", "b.png", "d.bmp", "e.png", "more/c.png"]
    assert [line.split()[0] for line in lines] == [str(photos / name) for name in names]
    with pytest.raises(SystemExit) as ended:
        main([photos / "notes.txt", photos / "a.png"], MODEL, as_csv=False)
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.err == f"error: {photos}/notes.txt: not a recognised image format\n"
    assert [line.split() for line in told.out.splitlines()[1:]] == [lines[0].split()]


def test_without_an_image_or_a_model_the_error_names_what_is_missing(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images; expected image files, or folders with images$"):
        main([tmp_path / "empty"], MODEL, as_csv=False)
    with pytest.raises(UserError, match=r"empty/model\.json does not exist; run: dvc repro fit$"):
        main([photos], tmp_path / "empty", as_csv=False)


def test_predictions_use_the_precision_of_the_model(photos: Path, digits: Path, params: Params) -> None:
    info = read_info(digits)
    weights = {name: value.double() for name, value in build_system(params.model, info).state_dict().items()}
    write_model(weights, blueprint_of(params.model, info), data_sha256=info.sha256, batch_size=2, params={})
    predictor = Predictor.load(MODEL)
    assert next(predictor.system.parameters()).dtype == torch.float64
    assert len(predictor.predict(photos)) == 5
