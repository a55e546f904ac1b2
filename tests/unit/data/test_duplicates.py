"""Near-duplicates: copies of a picture are found however they were changed, and other pictures are not."""

import io
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

from refit.artifacts.prepared import Pixels
from refit.data import duplicates
from refit.data.duplicates import SIMILAR, SMALLEST, Pair, check_audit_packages, find_near_duplicates, groups_of
from refit.runtime.errors import UserError

SIDE = 96


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """Blobs of several sizes and colours, with the edges of a photo."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(side, side, 3))
    blobs = sum(weight * gaussian_filter(noise, (sigma, sigma, 0)) for sigma, weight in ((2, 2.0), (6, 12.0)))
    return Image.fromarray(np.clip(128 + 90 * np.tanh(blobs), 0, 255).astype(np.uint8))


def packed(images: Sequence[Image.Image], mode: str = "RGB") -> Pixels:
    """As `prepare` packs them: all of one size, uint8 (N, C, H, W)."""
    arrays = [np.asarray(image.convert(mode).resize((SIDE, SIDE))) for image in images]
    return np.stack([array.transpose(2, 0, 1) if array.ndim == 3 else array[None] for array in arrays])


def found_in(images: Pixels) -> list[Pair]:
    return find_near_duplicates(images.__getitem__, len(images))


def resaved(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


def cropped(image: Image.Image) -> Image.Image:
    cut = round(0.05 * image.width)
    return image.crop((cut, 0, image.width, image.height - cut))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-saved": resaved,
    "rescaled": lambda image: image.resize((image.width // 2, image.height // 2)),
    "cropped": cropped,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "mirrored and cropped": lambda image: ImageOps.mirror(cropped(image)),
    "cropped and re-saved": lambda image: resaved(cropped(image)),
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_among_other_pictures(change: str, mode: str) -> None:
    originals = [picture(seed) for seed in range(30)]
    copies = [CHANGES[change](image) for image in originals[:6]]
    pairs = found_in(packed([*originals, *copies], mode))
    assert {(pair.first, pair.second) for pair in pairs} == {(i, 30 + i) for i in range(6)}
    assert all(SIMILAR <= pair.similarity <= 1 for pair in pairs)
    assert {pair.mirrored for pair in pairs} == {"mirrored" in change}
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)


def test_different_pictures_are_no_near_duplicates() -> None:
    assert found_in(packed([picture(seed) for seed in range(200)])) == []


def test_a_picture_with_the_same_light_and_another_pattern_is_not_a_near_duplicate() -> None:
    """As two plain shirts on one background: only the detail tells them apart."""
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = (np.abs(x - 48) < 30) & (np.abs(y - 48) < 38)
    pair = []
    for seed in (0, 1):
        pattern = 20 * np.random.default_rng(seed).choice([-1, 1], size=(SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(
            4, 1
        )
        shirt = np.where(inside, 90 + pattern, 220 - 0.3 * (x + y))
        pair.append(Image.fromarray(shirt.astype(np.uint8)))
    assert found_in(packed(pair)) == []
    with pytest.MonkeyPatch.context() as patch:  # the hashes alone would not do
        patch.setattr(duplicates, "SIMILAR", -1)
        patch.setattr(duplicates, "_PROMISING", -1)
        assert len(found_in(packed(pair))) == 1


def test_each_identical_image_is_paired_with_the_first_alone() -> None:
    images = packed([picture(0), picture(1), picture(0), picture(0)])
    assert found_in(images) == [Pair(0, 2, 1.0), Pair(0, 3, 1.0)]


def test_pictures_without_detail_are_not_all_near_duplicates_of_each_other() -> None:
    grey = [Image.new("RGB", (SIDE, SIDE), (level, level, level)) for level in range(0, 250, 10)]
    assert found_in(packed(grey)) == []


def test_of_very_small_images_only_identical_ones_are_found() -> None:
    small = packed([picture(0), CHANGES["brighter"](picture(0)), picture(0)])[..., : SMALLEST - 1, :]
    assert found_in(small) == [Pair(0, 2, 1.0)]


def test_no_images_have_no_near_duplicates() -> None:
    assert find_near_duplicates(lambda _: packed([picture(0)])[0], 0) == []


def test_images_that_pairs_connect_through_others_are_one_group() -> None:
    groups = groups_of([Pair(0, 3, 1.0), Pair(3, 5, 0.9), Pair(1, 2, 0.9)], 6).tolist()
    assert groups[0] == groups[3] == groups[5]
    assert groups[1] == groups[2]
    assert len({groups[0], groups[1], groups[4]}) == 3
    assert groups_of([], 3).tolist() == [0, 1, 2]


def test_the_blocks_of_pairs_leave_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [picture(seed) for seed in range(7) for _ in range(3)]
    images = packed([ImageEnhance.Brightness(frame).enhance(1 + 0.05 * (i % 3)) for i, frame in enumerate(frames)])
    whole = found_in(images)
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    assert found_in(images) == whole
    assert len(whole) == 3 * 7
    assert all(before.similarity >= after.similarity for before, after in pairwise(whole))


def test_without_the_extra_the_error_names_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "find_spec", lambda name: None if name == "imagehash" else object())
    with pytest.raises(UserError, match="extra audit; run: uv pip install cleanlab imagehash"):
        check_audit_packages()
