"""Sources of images: the images that each lists, and its errors."""

import socket
import struct
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from refit.data.sources.open import link_in_copy, open_source
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import fill, pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


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
