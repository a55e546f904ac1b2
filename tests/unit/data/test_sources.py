"""Sources of images: the images that each lists, and its errors."""

import os
import re
import socket
import struct
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refit.data.sources.open import link_in_copy, open_source
from refit.data.sources.source import Item, Source
from refit.runtime.errors import UserError
from tests.fixtures import Changed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def fill(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / name)


def listed(source: Source) -> list[tuple[str, str, str | None]]:
    return [(item.name, source.read_classes()[item.label], item.split) for item in source.list_images().items]


def pixels(item: Item) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with item.open() as image:
        return np.asarray(image)


def test_digits_are_the_1797_of_scikit_learn_in_17_grey_levels(changed: Changed, root: Path) -> None:
    source = open_source(changed({"data.source": "digits", "data.root": str(root)}).data)
    items = source.list_images().items
    assert source.read_classes() == tuple("0123456789")
    assert len(items) == len({item.name for item in items}) == 1797
    assert Counter(item.label for item in items)[3] == 183
    images = np.stack([pixels(item) for item in items])
    assert images.shape == (1797, 8, 8)
    levels = np.unique(images)
    assert (len(levels), levels[0], levels[-1]) == (17, 0, 255)


class TestFolder:
    @pytest.fixture(autouse=True)
    def _open(self, changed: Changed, root: Path) -> None:
        self.data = changed({"data.source": "folder", "data.root": str(root)}).data

    def test_with_class_folders_at_the_top_refit_draws_the_splits(self, root: Path) -> None:
        fill(root, "dog/1.png", "cat/b/2.png", "cat/1.png")
        assert listed(open_source(self.data)) == [
            ("cat/1.png", "cat", None), ("cat/b/2.png", "cat", None), ("dog/1.png", "dog", None)
        ]  # fmt: skip

    def test_split_folders_define_the_splits(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "test/dog/3.png")
        assert listed(open_source(self.data)) == [
            ("test/dog/3.png", "dog", "test"),
            ("train/cat/1.png", "cat", "train"),
            ("train/dog/1.png", "dog", "train"),
            ("val/cat/2.png", "cat", "val"),
        ]

    def test_train_and_val_alone_give_two_splits(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png")
        assert {split for _, _, split in listed(open_source(self.data))} == {"train", "val"}

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_the_validation_folder_can_have_any_usual_name(self, name: str, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", f"{name}/cat/2.png")
        assert (f"{name}/cat/2.png", "cat", "val") in listed(open_source(self.data))

    def test_a_class_missing_in_one_split_does_not_shift_the_labels_of_the_others(self, root: Path) -> None:
        fill(root, "train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "test/cat/2.png", "test/bee/2.png")
        source = open_source(self.data)
        assert source.read_classes() == ("ant", "bee", "cat")
        for item in source.list_images().items:
            assert source.read_classes()[item.label] == Path(item.name).parent.name

    def test_folders_next_to_the_split_folders_are_not_classes(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "masks/1.png", ".cache/1.png", "train/.hidden/1.png", "1.png")
        assert open_source(self.data).read_classes() == ("cat", "dog")
        assert len(listed(open_source(self.data))) == 2

    def test_classes_can_be_called_test_and_val(self, root: Path) -> None:
        fill(root, "test/1.png", "val/1.png")
        assert open_source(self.data).read_classes() == ("test", "val")

    def test_items_open_their_own_image(self, root: Path) -> None:
        fill(root, "cat/1.png", "dog/1.png")
        assert [pixels(item).max() for item in open_source(self.data).list_images().items] == [0, 1]

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ([], "no class folder;"),
            (["cat/1.png"], "one class folder;"),
            (["1.png"], "no class folder (is the folder above it the one?);"),
        ],
    )
    def test_fewer_than_two_classes_are_refused(self, names: Iterable[str], found: str, root: Path) -> None:
        fill(root, *names)
        with pytest.raises(UserError, match=re.escape(f"has {found} expected two or more")):
            open_source(self.data)

    def test_a_class_whose_name_is_not_utf_8_is_refused(self, root: Path) -> None:
        fill(root, "cat/1.png", os.fsdecode(b"caf\xe9/2.png"))
        with pytest.raises(UserError, match=r"the name of class caf\\udce9 is not UTF-8"):
            open_source(self.data)

    def test_a_class_without_an_image_fails_with_an_error_that_names_it(self, root: Path) -> None:
        fill(root, "cat/1.png", "dog/1.png")
        (root / "emu").mkdir()
        (root / "emu/notes.txt").touch()
        with pytest.raises(UserError, match="class folder 'emu' has no image"):
            open_source(self.data).list_images()


@pytest.mark.parametrize("source", ["mnist", "digits:8x8", "folder:photos", "torchvision", "torchvision:Fashion", ":"])
def test_an_unknown_source_fails_with_an_error_that_lists_the_known_ones(
    source: str, changed: Changed, root: Path
) -> None:
    data = changed({"data.source": source, "data.root": str(root)}).data
    with pytest.raises(UserError, match=r"data\.source = .* is unknown; .*(folder|FashionMNIST)"):
        open_source(data)


@pytest.mark.parametrize("source", ["digits", "folder", "torchvision:MNIST"])
def test_a_missing_root_fails_with_an_error_that_names_it(source: str, changed: Changed, tmp_path: Path) -> None:
    data = changed({"data.source": source, "data.root": str(tmp_path / "nowhere")}).data
    with pytest.raises(UserError, match=r"data\.root = '.*nowhere' is not a folder"):
        open_source(data)
    assert not (tmp_path / "nowhere").exists()


def test_images_missing_in_an_experiment_s_temporary_copy_give_an_error_with_the_remedy(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("main/data/raw/photos", "beside"):
        fill(tmp_path / root, "cat/1.png", "dog/1.png")
    copy = tmp_path / "main/.dvc/tmp/exps/copy"
    (copy / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    for root in ("data/raw", "../beside"):  # git has the former, though not what is in it
        link_in_copy(root)
        remedy = rf"as git ignores it; queue the experiment with -S data\.root={tmp_path}/main/{root}, or version"
        with pytest.raises(UserError, match=remedy):
            open_source(changed({"data.source": "folder", "data.root": root}).data)
    works = changed({"data.source": "folder", "data.root": f"{tmp_path}/main/data/raw/photos"}).data
    assert open_source(works).read_classes() == ("cat", "dog")


def test_images_that_git_ignores_are_linked_into_an_experiment_s_copy(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "main/data/raw/photos", "cat/1.png", "dog/1.png")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    link_in_copy("data/raw/photos")
    assert open_source(changed({"data.source": "folder", "data.root": "data/raw/photos"}).data).read_classes() == (
        "cat",
        "dog",
    )
    link_in_copy("data/raw/gone")
    assert not Path("data/raw/gone").is_symlink()
    monkeypatch.chdir(tmp_path / "main")
    link_in_copy("data/raw/photos")
    assert not Path("data/raw/photos").is_symlink()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100", "SVHN", "STL10"])
def test_a_failed_download_gives_a_one_line_error_and_leaves_no_file(
    name: str, changed: Changed, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed_port:
        closed_port.bind(("127.0.0.1", 0))
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{closed_port.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setattr(urllib.request, "_opener", None)  # it caches the proxies of its first use
        data = changed({"data.source": f"torchvision:{name}", "data.root": str(root)}).data
        with pytest.raises(UserError, match="could not be downloaded") as raised:
            open_source(data)
    (line,) = str(raised.value).splitlines()
    assert f"torchvision:{name}" in line
    assert str(root) in line
    assert list(root.iterdir()) == []


def write_idx(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_a_torchvision_data_set_in_the_root_is_read_completely(name: str, changed: Changed, root: Path) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    sets = {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
        sets[split] = list(zip(images, labels, strict=True))
    source = open_source(changed({"data.source": f"torchvision:{name}", "data.root": str(root)}).data)
    items = source.list_images().items
    assert len(source.read_classes()) == 10
    assert [item.split for item in items] == ["train"] * 12 + ["test"] * 5
    for item, (image, label) in zip(items, sets["train"] + sets["test"], strict=True):
        assert item.label == label
        assert np.array_equal(pixels(item), image)
