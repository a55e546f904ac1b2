"""`predict` on a generated folder of new images: a real stage, a real model and real files."""

import csv
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refit.artifacts.model import write_model
from refit.artifacts.prepared import read_info, read_split
from refit.inference.predictor import read_model
from refit.params import Params
from refit.runtime.errors import UserError
from refit.systems.build import blueprint_of, build_system
from stages import predict
from tests.fixtures import Changed

NEW = Path("data/new")


@pytest.fixture(autouse=True)
def _model(prepared_workspace: Path, params: Params) -> None:
    """An untrained model of digits in data/model."""
    torch.manual_seed(0)
    info = read_info()
    weights = build_system(params.model, info).state_dict()
    write_model(weights, blueprint_of(params.model, info), data_sha256=info.sha256, batch_size=4, params={})


def draw(name: str, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    (NEW / name).parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (size[1], size[0]), dtype=np.uint8)).save(NEW / name)
    return NEW / name


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rows() -> list[dict[str, str]]:
    with Path("data/predictions/predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("data/predictions/summary.json").read_text(encoding="utf-8"))
    return content


def test_each_decodable_image_has_a_row_in_order_and_the_others_are_reported(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["b.png", "a/2.png", "a/10.png", "c.bmp", "z.png", "ü, ö.png"]
    for seed, name in enumerate(names):
        draw(name, seed)
    halve(draw("d.jpg", size=(64, 64)))
    draw(".hidden.png")
    (NEW / "notes.txt").touch()
    predict.main(params)
    assert [row["file"] for row in rows()] == ["b.png", "c.bmp", "z.png", "ü, ö.png", "a/10.png", "a/2.png"]
    bad, no_image = summary()["unreadable"]
    assert bad["file"] == "d.jpg"
    assert "truncated" in bad["why"]
    assert no_image["file"] == "notes.txt"
    assert "its name does not end in .bmp, " in no_image["why"]
    told = capsys.readouterr()
    assert "warning: d.jpg is left out: " in told.err
    assert "warning: notes.txt is left out: " in told.err
    assert "predicted 6 images (new images) as one of 10 classes: 0, 1, 2" in told.out


def page() -> str:
    return Path("data/predictions/predictions.html").read_text(encoding="utf-8")


def test_the_page_shows_the_least_certain_images_first_and_escapes_names(params: Params) -> None:
    for seed, name in enumerate(["b.png", "a&<b>.png", "c.png"]):
        draw(name, seed)
    (NEW / "<i>.txt").touch()
    predict.main(params)
    certain = sorted(rows(), key=lambda row: float(row["probability"]))
    places = [page().index(f">{escape(row['file'])}<") for row in certain]
    assert places == sorted(places)
    assert page().count("data:image/png;base64,") == 3
    assert "<b>.png" not in page()
    assert escape("<i>.txt") in page()
    assert "The model knows 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in page()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page())


def test_the_page_states_how_many_of_the_images_it_shows(params: Params) -> None:
    predict.main(params)
    assert "The 200 least certain of 359;" in page()
    assert page().count("<li") == 200
    for seed in range(3):
        draw(f"{seed}.png", seed)
    predict.main(params)
    assert "least certain of" not in page()


def test_a_row_has_the_model_s_prediction_for_that_file(changed: Changed) -> None:
    """There are more files than in one batch, so that a shifted row would be noticed."""
    for number in range(21):
        draw(f"{number:02}.png", number)
    draw("04.png").write_bytes(b"")
    predict.main(changed({"predict.top_k": 10}))
    system, model = read_model()
    assert len(rows()) == 20
    for row in rows():
        pixels = torch.from_numpy(np.asarray(Image.open(NEW / row["file"])).copy())
        with torch.inference_mode():
            probabilities = system(pixels[None, None])[0]
        order = probabilities.argsort(descending=True).tolist()
        assert [row["label"], *(row[f"label_{place}"] for place in range(2, 11))] == [model.classes[i] for i in order]
        told = [float(row["probability"]), *(float(row[f"probability_{place}"]) for place in range(2, 11))]
        np.testing.assert_allclose(told, probabilities[order], atol=2e-6)
        assert sum(told) == pytest.approx(1, abs=1e-5)


def test_photos_of_any_size_and_mode_are_converted_for_the_model(params: Params) -> None:
    for number, mode in enumerate(("RGB", "RGBA", "P", "1", "I;16")):
        Image.new(mode, (50 + number, 30)).save(NEW / f"{number}.png")
    predict.main(params)
    assert len(rows()) == 5


def test_an_uncertain_prediction_is_marked_as_abstained_and_counted(changed: Changed) -> None:
    for number in range(10):
        draw(f"{number}.png", number)
    predict.main(changed({"predict.abstain_below": 0.0}))
    certain = sorted(float(row["probability"]) for row in rows())
    assert {row["abstained"] for row in rows()} == {"no"}
    predict.main(changed({"predict.abstain_below": (certain[3] + certain[4]) / 2}))
    assert sum(row["abstained"] == "yes" for row in rows()) == summary()["abstained"] == 4
    assert all((float(row["probability"]) <= certain[3]) == (row["abstained"] == "yes") for row in rows())


@pytest.mark.parametrize(("abstain_below", "never"), [(0.0, False), (0.1, True), (0.11, False)])
def test_the_page_shows_when_an_image_is_in_doubt_and_a_note_says_that_it_can_never_be(
    abstain_below: float, never: bool, changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    draw("1.png")
    predict.main(changed({"predict.abstain_below": abstain_below}))
    why = (
        "predict.abstain_below is 0.1: with 10 classes no image is ever below it, as the most probable class has at "
        "least 0.1"
    )
    assert (f"note: {why}; to mark doubtful ones, raise it\n" in capsys.readouterr().out) == never
    assert (f" {why}." in page()) == never
    assert (f"its probability is below predict.abstain_below = {abstain_below:g}." in page()) != never


@pytest.mark.parametrize(("top_k", "listed"), [(1, 1), (3, 3), (99, 10)])
def test_a_row_lists_the_top_k_classes(top_k: int, listed: int, changed: Changed) -> None:
    draw("1.png")
    predict.main(changed({"predict.top_k": top_k}))
    assert sum(name.startswith("label") for name in rows()[0]) == listed


def test_an_empty_folder_means_the_test_split(params: Params) -> None:
    predict.main(params)
    labels = read_split("test").labels
    assert summary()["of"] == "the test split"
    assert summary()["images"] == len(rows()) == len(labels)
    assert len({row["file"] for row in rows()}) == len(labels)
    assert sum(summary()["predicted"].values()) == len(labels)


def test_the_summary_names_the_model(params: Params) -> None:
    draw("1.png")
    predict.main(params)
    assert summary()["model_sha256"] == read_model()[1].sha256
    assert (summary()["of"], summary()["images"]) == ("new images", 1)


def test_if_no_image_can_be_decoded_the_last_predictions_are_kept(params: Params) -> None:
    draw("1.png")
    predict.main(params)
    before = rows()
    (NEW / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"predict\.images = 'data/new': none of its 1 images can be decoded"):
        predict.main(params)
    assert rows() == before


def test_a_missing_folder_fails_with_an_error_that_names_its_key(changed: Changed) -> None:
    with pytest.raises(UserError, match=r"predict\.images = 'data/newer' does not exist"):
        predict.main(changed({"predict.images": "data/newer"}))


def test_predictions_are_reproducible_although_images_are_decoded_in_parallel(params: Params) -> None:
    """The first of the unreadable files takes the longest to fail."""
    for number in range(4):
        draw(f"good{number}.png", number)
    halve(draw("bad1.jpg", size=(3000, 3000)))
    halve(draw("bad2.jpg", size=(64, 64)))
    (NEW / "bad3.jpg").write_bytes(b"")
    written = []
    for _ in range(2):
        predict.main(params)
        written.append([path.read_bytes() for path in sorted(Path("data/predictions").iterdir())])
        assert [bad["file"] for bad in summary()["unreadable"]] == ["bad1.jpg", "bad2.jpg", "bad3.jpg"]
    assert written[0] == written[1]


def test_new_images_are_predicted_without_the_prepared_data(params: Params, prepared_workspace: Path) -> None:
    draw("1.png")
    (prepared_workspace / "data/prepared").rename(prepared_workspace / "elsewhere")
    predict.main(params)
    assert len(rows()) == 1


def test_a_file_name_that_is_not_utf_8_is_escaped(params: Params) -> None:
    (NEW / "1.png").parent.mkdir(exist_ok=True)
    draw("1.png").rename(NEW / "gr\udcf6n.png")
    predict.main(params)
    assert rows()[0]["file"] == r"gr\udcf6n.png"


def test_if_no_file_is_an_image_the_test_split_is_predicted_and_the_files_are_reported(
    params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(23):
        (NEW / f"{number:02}.heic").touch()
    predict.main(params)
    assert summary()["of"] == "the test split"
    assert len(summary()["unreadable"]) == 23
    warnings = capsys.readouterr().err.splitlines()
    assert warnings[0].startswith("warning: 00.heic is left out: its name does not end in ")
    assert warnings[20:] == ["warning: 3 more files are left out; data/predictions/summary.json names all"]
    assert page().count(".heic") == 20
    assert "The first 20 of 23;" in page()
