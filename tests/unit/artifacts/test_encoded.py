"""Encoded images are the very pixels, however they are indexed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit.artifacts.encoded import EncodedImages, decode, encode, write_encoded
from refit.artifacts.prepared import Pixels


def _images(count: int, shape: tuple[int, int, int] = (3, 5, 7)) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def _encoded(folder: Path, images: Pixels) -> EncodedImages:
    count, channels, height, width = images.shape
    write_encoded(folder, "train", map(encode, images), (count, channels, height, width))
    return EncodedImages(folder, "train", (channels, height, width))


@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_encoding_loses_nothing(channels: int, height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encode(image), channels), image)


@pytest.mark.parametrize(
    "rows", [2, -1, slice(1, 4), slice(None, None, 3), slice(0), [4, 0, 4], np.array([5, 1]), np.array([], np.int64)]
)
def test_any_index_gives_what_an_array_gives(tmp_path: Path, rows: Any) -> None:
    images = _images(6)
    found = _encoded(tmp_path, images)[rows]
    np.testing.assert_array_equal(found, images[rows])
    assert found.dtype == np.uint8


def test_shape_length_iteration_and_the_whole_array_are_those_of_the_pixels(tmp_path: Path) -> None:
    images = _images(6, (1, 4, 4))
    encoded = _encoded(tmp_path, images)
    assert encoded.shape == images.shape
    assert len(encoded) == 6
    np.testing.assert_array_equal(np.stack(list(encoded)), images)
    np.testing.assert_array_equal(np.asarray(encoded), images)
    with pytest.raises(IndexError):
        encoded[6]


def test_shards_end_after_the_first_image_beyond_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refit.artifacts.encoded.SHARD_BYTES", 300)
    images = _images(20)
    encoded = _encoded(tmp_path, images)
    sizes = [file.stat().st_size for file in sorted((tmp_path / "train_images").iterdir())]
    assert len(sizes) > 2
    assert all(300 <= size < 300 + len(encode(images[0])) + 50 for size in sizes[:-1])
    np.testing.assert_array_equal(encoded[:], images)


def test_a_split_without_images_can_be_read(tmp_path: Path) -> None:
    assert _encoded(tmp_path, _images(0))[:].shape == (0, 3, 5, 7)
