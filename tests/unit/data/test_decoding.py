"""What `prepare` decodes is decoded once, is the same whoever decodes it, and survives an interrupted run."""

import os
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refit.artifacts.prepared import read_info, read_split
from refit.data.decoding import Outcome, _attempt
from refit.data.pack import Packed, pack
from refit.data.sources.open import open_source
from refit.data.sources.source import Item
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import packed
from tests.unit.data.test_pack import contents, photos, truncate

Prepare = Callable[..., dict[str, bytes]]


@pytest.fixture
def prepare(changed: Changed, tmp_path: Path) -> Prepare:
    """Pack tmp_path/raw, with decoded images in tmp_path/decoded; returns all files that it wrote."""

    def run(folder: str = "packed", **keys: object) -> dict[str, bytes]:
        _pack(changed, tmp_path, folder, keys)
        return contents(tmp_path / folder)

    return run


def _pack(changed: Changed, root: Path, folder: str, keys: Mapping[str, object]) -> Packed:
    data = {f"data.{key}": value for key, value in keys.items()}
    params = changed({"data.source": "folder", "data.root": str(root / "raw"), **data})
    (root / folder).mkdir()
    return pack(open_source(params.data), params.data, params.seed, root / folder, decoded_in=root / "decoded")


def _decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are decoded from now on."""
    names: list[str] = []

    def attempt(item: Item, *where: Any) -> tuple[Outcome, bytes]:
        names.append(Path(item.name).name)
        return _attempt(item, *where)

    monkeypatch.setattr("refit.data.decoding._attempt", attempt)
    monkeypatch.setattr("refit.data.decoding.in_parallel", lambda work, count, together: map(work, range(count)))
    return names


# Interrupted


@pytest.mark.parametrize("storage", ["pixels", "encoded"])
def test_a_prepare_that_was_killed_goes_on_and_writes_the_same_bytes(
    changed: Changed,
    prepare: Prepare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    storage: str,
) -> None:
    photos(tmp_path / "raw", count=150, sizes=((96, 96),))
    before = packed(changed, "folder", tmp_path / "raw", tmp_path / "whole", storage=storage)
    child = get_context("fork").Process(target=_pack, args=(changed, tmp_path, "killed", {"storage": storage}))
    child.start()
    while child.is_alive() and not list((tmp_path / "decoded").glob("*/*.json")):
        time.sleep(0.001)
    child.kill()
    child.join()
    assert child.exitcode == -9
    names = _decoded(monkeypatch)
    assert prepare(storage=storage) == contents(tmp_path / "whole")
    assert 0 < len(names) < before.info.counts["train"] + before.info.counts["val"] + before.info.counts["test"]
    assert f"{300 - len(names)} of 300 images were decoded by a run that did not finish" in capsys.readouterr().out


def test_only_changed_new_and_damaged_images_are_decoded_again(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw")
    prepare()
    raw = tmp_path / "raw" / "cat"
    Image.open(raw / "03.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(raw / "03.png")
    Image.open(raw / "05.png").rotate(90).save(raw / "new.png")
    (part,) = (tmp_path / "decoded").rglob("2.part")  # the last 8 of 40 images
    part.write_bytes(part.read_bytes()[:-12])
    names = _decoded(monkeypatch)
    again = prepare("again")
    assert sorted(names) == ["03.png", "19.png", "new.png"]
    (tmp_path / "decoded").rename(tmp_path / "unused")
    assert again == prepare("from_scratch")


def test_after_a_fault_is_repaired_only_its_image_is_decoded_again(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw")
    whole = (tmp_path / "raw/dog/07.png").read_bytes()
    truncate(tmp_path / "raw/dog/07.png")
    with pytest.raises(UserError, match=r"dog/07.png: .*repair or remove it"):
        prepare()
    (tmp_path / "raw/dog/07.png").write_bytes(whole)
    names = _decoded(monkeypatch)
    prepare("again")
    assert names == ["07.png"]


def test_images_of_another_size_are_decoded_anew(prepare: Prepare, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    prepare()
    assert read_info(tmp_path / "packed").shape == [3, 12, 12]
    prepare("small", image_size=8)
    assert read_info(tmp_path / "small").shape == [3, 8, 8]


# Storage


def test_encoded_storage_has_the_same_pixels_and_descriptions(prepare: Prepare, tmp_path: Path) -> None:
    photos(tmp_path / "raw", sizes=((20, 12), (16, 16)))
    pixels, encoded = prepare("pixels", storage="pixels"), prepare("encoded", storage="encoded")
    for name in ("dataset.json", "manifest.parquet", "train_labels.npy", "test_labels.npy"):
        assert pixels[name] == encoded[name]
    for split in ("train", "val", "test"):
        of_pixels, of_encoded = (read_split(split, tmp_path / folder).images for folder in ("pixels", "encoded"))
        assert len(of_pixels)
        np.testing.assert_array_equal(of_encoded, of_pixels)
        assert f"{split}_images.npy" not in encoded


@pytest.mark.parametrize(("limit", "is_encoded"), [(40 * 12 * 12 * 3, False), (40 * 12 * 12 * 3 - 1, True)])
def test_auto_encodes_what_exceeds_the_limit_as_pixels(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, is_encoded: bool
) -> None:
    monkeypatch.setattr("refit.data.decoding.ENCODED_FROM", limit)
    photos(tmp_path / "raw")
    assert ("train_index.npy" in prepare()) == is_encoded


# Workers


def test_the_bytes_do_not_depend_on_the_number_of_processes(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw", count=60)
    found = []
    for processes in (1, 2, 4):
        monkeypatch.setattr(os, "cpu_count", lambda processes=processes: processes)
        packed(changed, "folder", tmp_path / "raw", tmp_path / f"by_{processes}", storage="encoded")
        found.append(contents(tmp_path / f"by_{processes}"))
    assert found[0] == found[1] == found[2]
