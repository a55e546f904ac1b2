"""The prepared data set is reproducible, and contains only valid images with one label each."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow.parquet import read_table

from refit.artifacts.prepared import DatasetInfo, read_info, read_split
from refit.batches.new_images import NewImages
from refit.data.decoding import AUTO_SIZE
from refit.data.images import open_image
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.data.sources.source import Unlabelled
from refit.params import Params
from refit.params.data import Resize
from refit.runtime.errors import UserError
from stages import prepare
from tests.fixtures import Changed

SPLITS = ("train", "val", "test")


def photos(
    root: Path, sizes: tuple[tuple[int, int], ...] = ((12, 12),), mode: str = "RGB", count: int = 20, seed: int = 0
) -> Path:
    """A folder of two classes with `count` random images each."""
    random = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            width, height = sizes[number % len(sizes)]
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.convert(mode).save(root / name / f"{number:02}.png")
    return root


Pack = Callable[..., tuple[DatasetInfo, dict[str, int | float]]]


@pytest.fixture
def packed(changed: Changed, tmp_path: Path) -> Pack:
    """Pack tmp_path/raw into tmp_path/packed."""

    def run(**keys: object) -> tuple[DatasetInfo, dict[str, int | float]]:
        data = {f"data.{key}": value for key, value in keys.items()}
        params = changed({"data.source": "folder", "data.root": str(tmp_path / "raw"), **data})
        (tmp_path / "packed").mkdir()
        return pack(open_source(params.data), params.data, params.seed, tmp_path / "packed")[:2]

    return run


def manifest(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(folder / "manifest.parquet").to_pylist()
    return rows


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half_jpeg(path: Path) -> None:
    """A JPEG file with a readable header and truncated pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-60])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_packed_as_the_files_are(info: DatasetInfo, root: Path, folder: Path) -> None:
    rows = manifest(folder)
    for name in SPLITS:
        split = read_split(name, folder)
        own = [row for row in rows if row["split"] == name]
        assert len(split.images) == len(split.labels) == len(own) == info.counts[name]
        for pixels, label, row in zip(split.images, split.labels, own, strict=True):
            assert info.classes[label] == row["class"] == Path(row["name"]).parent.name
            assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(Image.open(root / row["name"])))


def test_the_packed_images_have_the_pixels_and_labels_of_their_files(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    info, _ = packed()
    assert_packed_as_the_files_are(info, tmp_path / "raw", tmp_path / "packed")


def test_mean_and_std_are_those_of_the_training_images(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    info, _ = packed()
    pixels = np.asarray(read_split("train", tmp_path / "packed").images, np.float64) / 255
    np.testing.assert_allclose(info.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(info.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_the_std_of_a_constant_channel_is_not_zero(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    for number, path in enumerate(sorted((tmp_path / "raw").rglob("*.png"))):
        pixels = np.full((8, 8, 3), number, np.uint8)
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(path)
    info, _ = packed()
    assert info.std[2] == pytest.approx(1 / 255)


def test_the_manifest_has_one_row_per_image(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw", sizes=((12, 12), (20, 15)))
    info, report = packed(image_size=16)
    rows = manifest(tmp_path / "packed")
    assert len({row["name"] for row in rows}) == len(rows) == 40 == sum(info.counts.values())
    assert {row["name"]: (row["width"], row["height"]) for row in rows}["dog/01.png"] == (20, 15)
    assert all(len(row["sha256"]) == 64 for row in rows)
    assert report == {
        **info.counts, "skipped": 0, "duplicates": 0, "left_out_copies": 0, "left_out": 0,
        "decisions": 0, "imbalance": 1.0
    }  # fmt: skip


def test_the_folder_contains_only_the_data_set(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    packed()
    arrays = [f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")]
    assert sorted(contents(tmp_path / "packed")) == sorted([*arrays, "dataset.json", "manifest.parquet"])
    assert all(f"{tmp_path}".encode() not in content for content in contents(tmp_path / "packed").values())


def test_the_packed_info_reads_back_unchanged(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    info, _ = packed()
    assert read_info(tmp_path / "packed") == info


@pytest.mark.parametrize("change", ["pixels", "label", "nothing"])
def test_the_data_s_sha256_changes_only_with_its_content(change: str, packed: Pack, tmp_path: Path) -> None:
    for seed, split in enumerate(SPLITS):
        photos(tmp_path / "raw" / split, seed=seed)
    before, _ = packed()
    (tmp_path / "packed").rename(tmp_path / "before")
    last = tmp_path / "raw/train/cat/19.png"
    if change == "pixels":
        Image.new("RGB", (12, 12)).save(last)
    elif change == "label":
        last.rename(tmp_path / "raw/train/dog/0.png")  # its position in the order stays the same
    else:
        last.rename(last.with_name("20.png"))
    after, _ = packed()
    assert (before.sha256 == after.sha256) == (change == "nothing")


@pytest.mark.parametrize("spoil", [truncate, empty, half_jpeg])
def test_an_undecodable_image_fails_with_an_error_that_names_it(
    spoil: Callable[[Path], object], packed: Pack, tmp_path: Path
) -> None:
    spoil(photos(tmp_path / "raw") / "cat/07.png")
    with pytest.raises(UserError, match=r"^cat/07\.png: .*repair or remove it, or set data\.bad_images to skip"):
        packed()


def test_one_error_lists_all_unusable_images_with_the_reasons(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    empty(root / "cat/02.png")  # its header cannot be read
    truncate(root / "dog/07.png")  # its pixels cannot be read
    (root / "dog/03.png").write_bytes((root / "cat/03.png").read_bytes())
    with pytest.raises(UserError) as raised:
        packed()
    head, *lines = str(raised.value).splitlines()
    assert head == "3 images cannot be used; repair or remove them, or set data.bad_images to skip:"
    assert lines[0] == "cat/02.png: not a recognised image format"
    assert lines[1].startswith("dog/07.png: ")
    assert lines[2] == "cat/03.png and dog/03.png: identical images with different labels"
    shutil.rmtree(tmp_path / "packed")
    for number in range(60):
        empty(root / f"cat/more{number}.png")
    for file in root.rglob("*.png"):
        empty(file)
    with pytest.raises(UserError, match=r"(?s)^100 images cannot be used; .*\nand 50 more$"):
        packed()


@pytest.mark.parametrize("spoil", [truncate, empty, half_jpeg])
def test_bad_images_can_be_skipped_named_and_counted(
    spoil: Callable[[Path], object], packed: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "raw")
    spoil(tmp_path / "raw/cat/07.png")
    info, report = packed(bad_images="skip")
    assert report["skipped"] == 1
    assert sum(info.counts.values()) == 39
    assert "skipped cat/07.png: " in capsys.readouterr().out
    assert "cat/07.png" not in {row["name"] for row in manifest(tmp_path / "packed")}
    assert_packed_as_the_files_are(info, tmp_path / "raw", tmp_path / "packed")


def test_a_rotated_tiff_photo_is_packed_upright(packed: Pack, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in sorted(photos(tmp_path / "raw", sizes=((12, 9),)).rglob("*.png")):
        Image.open(path).save(path.with_suffix(".tif"), exif=exif)
        path.unlink()
    info, _ = packed()
    assert info.shape == [3, 12, 9]


def test_one_image_in_two_classes_fails_with_an_error_that_names_both(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    (root / "dog/03.png").write_bytes((root / "cat/03.png").read_bytes())
    with pytest.raises(UserError, match=r"^cat/03\.png and dog/03\.png: identical images with different labels"):
        packed()


def test_one_image_in_two_classes_can_be_skipped_in_both(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    (root / "dog/03.png").write_bytes((root / "cat/03.png").read_bytes())
    _, report = packed(bad_images="skip")
    assert report["skipped"] == 2
    assert not {"cat/03.png", "dog/03.png"} & {row["name"] for row in manifest(tmp_path / "packed")}


def test_copies_are_counted_and_stay_in_one_split(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    for number in range(10):
        (root / f"cat/copy{number}.png").write_bytes((root / f"cat/{number:02}.png").read_bytes())
    _, report = packed()
    assert report["duplicates"] == 10
    assert report["left_out_copies"] == 0
    rows = manifest(tmp_path / "packed")
    assert len({(row["sha256"], row["split"]) for row in rows}) == len({row["sha256"] for row in rows}) == 40


def test_the_same_picture_in_two_file_formats_is_a_copy(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    Image.open(root / "cat/00.png").save(root / "cat/00.bmp")
    _, report = packed()
    assert report["duplicates"] == 1


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_auto_takes_the_images_own_size_and_colour(mode: str, channels: int, packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw", sizes=((12, 9),), mode=mode)
    info, _ = packed(image_size="auto", color="auto")
    assert info.shape == [channels, 9, 12]


@pytest.mark.parametrize("sample", [1, 64])
def test_auto_is_rgb_if_any_image_is_and_128_pixels_if_sizes_differ(
    sample: int, packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the images whose headers are read first are alike."""
    monkeypatch.setattr("refit.data.decoding._SAMPLE", sample)
    root = photos(tmp_path / "raw", mode="L")
    Image.new("RGB", (30, 20), "red").save(root / "cat/red.png")
    info, _ = packed(image_size="auto", color="auto")
    assert info.shape == [3, AUTO_SIZE, AUTO_SIZE]


def test_size_and_colour_can_be_set(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw", sizes=((12, 9),))
    info, _ = packed(image_size=8, color="grey")
    assert (info.shape, info.color) == ([1, 8, 8], "grey")
    assert read_split("train", tmp_path / "packed").images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_the_prepared_images_are_resized_as_new_ones_are_and_the_description_says_how(
    resize: Resize, packed: Pack, tmp_path: Path
) -> None:
    root = photos(tmp_path / "raw", sizes=((12, 9), (9, 30)))
    info, _ = packed(image_size=8, resize=resize)
    names = [row["name"] for row in manifest(tmp_path / "packed") if row["split"] == "train"]
    new = [Unlabelled(name, partial(open_image, root / name)) for name in names]
    again = NewImages(new, info.color, (8, 8), info.resize, 16)
    assert np.array_equal(np.concatenate([*again]), read_split("train", tmp_path / "packed").images)
    assert read_info(tmp_path / "packed") == info
    written = json.loads((tmp_path / "packed/dataset.json").read_text())
    assert written.get("resize") == (None if resize == "crop" else resize)


def test_a_class_without_a_validation_image_gets_a_warning(
    packed: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted(photos(tmp_path / "raw").glob("dog/*"))[3:]:
        file.unlink()
    packed(val=0.1, test=0.2)
    assert capsys.readouterr().err == (
        "warning: the val split has no image of class 'dog'; with data.val = 0.1 a class needs 6 images: add images, "
        "or raise data.val\n"
    )


def test_a_class_with_a_single_image_gets_warnings_with_a_remedy(
    packed: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted(photos(tmp_path / "raw").glob("dog/*"))[1:]:
        file.unlink()
    packed(val=0.15, test=0.2)
    needs = "a class needs {} images: add images, or raise data.{}"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: the val split has no image of class 'dog'; with data.val = 0.15 {needs.format(4, 'val')}",
        f"warning: the test split has no image of class 'dog'; with data.test = 0.2 {needs.format(3, 'test')}",
        "warning: a single image of class 'dog': the model can learn it, but not be tested on it; add images, or "
        "remove the class",
    ]


def test_a_class_without_a_training_image_fails_with_an_error_that_names_it(packed: Pack, tmp_path: Path) -> None:
    photos(tmp_path / "raw/train")
    photos(tmp_path / "raw/test", count=3, seed=1)
    (tmp_path / "raw/test/dog").rename(tmp_path / "raw/test/emu")
    with pytest.raises(UserError, match="no training image of class 'emu'"):
        packed()


def test_a_file_name_that_is_not_utf_8_is_escaped(packed: Pack, tmp_path: Path) -> None:
    root = photos(tmp_path / "raw")
    (root / "cat/00.png").rename(os.fsdecode(os.fsencode(root / "cat") + b"/gr\xf6n.png"))
    packed()
    assert r"cat/gr\udcf6n.png" in {row["name"] for row in manifest(tmp_path / "packed")}


@pytest.fixture
def folder_params(workspace: Path, changed: Changed) -> Params:
    photos(workspace / "data/raw")
    return changed({"data.source": "folder", "data.root": "data/raw"})


def test_a_failed_prepare_leaves_no_half_written_file(folder_params: Params, workspace: Path) -> None:
    truncate(workspace / "data/raw/dog/19.png")
    before = sorted(workspace.rglob("*"))
    with pytest.raises(UserError, match=r"dog/19\.png"):
        prepare.main(folder_params)
    assert sorted(workspace.rglob("*")) == before


def test_a_failed_prepare_keeps_the_previous_data_set(folder_params: Params, workspace: Path) -> None:
    prepare.main(folder_params)
    before = contents(workspace / "data")
    before.pop("raw/dog/19.png")
    (workspace / "data/raw/dog/19.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"dog/19\.png"):
        prepare.main(folder_params)
    assert contents(workspace / "data") == {**before, "raw/dog/19.png": b""}


def test_the_report_of_prepare_has_the_size_of_each_split(folder_params: Params, workspace: Path) -> None:
    prepare.main(folder_params)
    report = json.loads((workspace / "data/prepared_report.json").read_text())
    assert [report[split] for split in SPLITS] == [26, 6, 8]


def test_without_a_prepared_data_set_the_error_names_the_command_to_run(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"data/prepared/dataset\.json does not exist; run: dvc repro prepare"):
        read_info()


def test_a_data_set_of_another_format_is_refused(folder_params: Params, workspace: Path) -> None:
    prepare.main(folder_params)
    path = workspace / "data/prepared/dataset.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="has format 2, expected 1; run: dvc repro prepare"):
        read_info()
