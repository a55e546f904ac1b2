"""Augmentation: each image has its own random draws, and each augmentation does exactly what its name says."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refit.batches.augment import Draws, at_trained_size, augment, check_size, draw, full_size_batch, trained_size
from refit.params import AugmentParams
from refit.runtime.errors import UserError

IMAGES = torch.randint(1, 256, (64, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draws_for(params: AugmentParams, count: int = len(IMAGES), seed: int = 0) -> Draws:
    draws = draw(params, count, (IMAGES.shape[2], IMAGES.shape[3]), np.random.default_rng(seed))
    assert draws is not None
    return draws


def drawn(choice: Tensor | None) -> Tensor:
    assert choice is not None
    return choice


KINDS: list[tuple[dict[str, Any], set[str]]] = [
    ({"shift": 2}, {"shift"}),
    ({"flip": True}, {"flip"}),
    ({"cutout": 3}, {"cutout"}),
    ({"crop_area": 0.5}, {"crop"}),
    ({"color_jitter": 0.4}, {"jitter"}),
    ({"policy": "trivialaugment"}, {"operations", "strengths"}),
    ({"mixup": 0.4, "cutmix": 1.0}, {"lam", "box"}),
]
EVERYTHING = AugmentParams(**{key: value for choices, _ in KINDS for key, value in choices.items()})


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """One image shifted over a black background, pixel by pixel."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


def test_without_augmentation_nothing_is_drawn() -> None:
    assert draw(AugmentParams(), len(IMAGES), (8, 8), np.random.default_rng(0)) is None


@pytest.mark.parametrize("shift", [1, 3, 20])
def test_a_shift_moves_each_image_by_its_own_draw_and_fills_with_black(shift: int) -> None:
    params = AugmentParams(shift=shift)
    draws = draws_for(params)
    expected = [
        shifted(image, int(down), int(right)) for image, (down, right) in zip(IMAGES, drawn(draws.shift), strict=True)
    ]
    assert torch.equal(augment(IMAGES, draws, params), torch.stack(expected))


@pytest.mark.parametrize("key", ["shift", "cutout"])
def test_an_augmentation_that_could_remove_a_whole_image_is_refused(key: str) -> None:
    fits: Any = {key: 7}
    too_large: Any = {key: 8}
    check_size(AugmentParams(**fits), 8, 28)
    with pytest.raises(UserError, match=rf"^augment\.{key} = 8 can .* of 8x28 pixels; expected less than 8$"):
        check_size(AugmentParams(**too_large), 8, 28)


def test_shifts_cover_their_whole_range_and_no_more() -> None:
    assert set(drawn(draws_for(AugmentParams(shift=2)).shift).flatten().tolist()) == {-2, -1, 0, 1, 2}


def test_a_flip_mirrors_only_the_drawn_images() -> None:
    params = AugmentParams(flip=True)
    draws = draws_for(params)
    flip = drawn(draws.flip)
    assert 20 < flip.sum() < 44
    result = augment(IMAGES, draws, params)
    assert torch.equal(result[flip], IMAGES[flip].flip(3))
    assert torch.equal(result[~flip], IMAGES[~flip])


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_cutout_blackens_a_square_of_the_given_side_at_the_drawn_position(side: int) -> None:
    params = AugmentParams(cutout=side)
    draws = draws_for(params)
    cut = (augment(IMAGES, draws, params) == 0).all(1)
    _, height, width = cut.shape
    inside = 0
    for image, (row, column) in zip(cut, drawn(draws.cutout).tolist(), strict=True):
        if side <= row < height - side and side <= column < width - side:
            inside += 1
            assert (image.any(1).sum(), image.any(0).sum(), image.sum()) == (side, side, side**2)
            assert image[row, column]
    assert inside or side == 5


def test_cutout_does_not_change_the_other_pixels() -> None:
    params = AugmentParams(cutout=4)
    result = augment(IMAGES, draws_for(params), params)
    assert torch.equal(result[result > 0], IMAGES[result > 0])


def test_cutout_can_be_at_every_position_of_the_image() -> None:
    centres = drawn(draws_for(AugmentParams(cutout=2), 4096).cutout)
    assert (centres.amin(0).tolist(), centres.amax(0).tolist()) == ([0, 0], [9, 11])


@pytest.mark.parametrize("area", [0.08, 0.5, 0.9])
def test_crops_keep_to_their_area_and_aspect_ratio_and_stay_inside_the_image(area: float) -> None:
    crop = drawn(draws_for(AugmentParams(crop_area=area), 4096).crop).double()
    centre, side = crop[:, :2], crop[:, 2:]
    areas, ratios = side.prod(1), side[:, 1] / side[:, 0]
    assert areas.min() == pytest.approx(area, abs=0.01)
    assert areas.max() == pytest.approx(1, abs=0.01)
    assert 3 / 4 - 1e-6 <= ratios.min() <= ratios.max() <= 4 / 3 + 1e-6
    assert -1e-6 <= (centre - side / 2).min() <= (centre + side / 2).max() <= 1 + 1e-6


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_is_resized_to_the_whole_image(axis: int) -> None:
    """Bilinear interpolation maps a ramp to a ramp, from the first border of the crop to its last."""
    size = (40, 60)[axis]
    ramp = torch.arange(size) * 4
    image = (ramp[:, None].expand(-1, 60) if axis == 0 else ramp.expand(40, -1)).to(torch.uint8)
    params = AugmentParams(crop_area=0.2)
    draws = draws_for(params)
    result = augment(image.expand(64, 1, -1, -1), draws, params)
    crop = drawn(draws.crop)
    centre, side = crop[:, axis, None], crop[:, 2 + axis, None]
    place = (centre - side / 2 + side * (torch.arange(size) + 0.5) / size) * size - 0.5  # in pixels, starting at 0
    expected = 4 * place.clamp(0, size - 1)
    seen = result[:, 0, :, 7] if axis == 0 else result[:, 0, 7]
    assert (seen - expected).abs().max() <= 0.51


@pytest.mark.parametrize("choice", [{"shift": 3}, {"flip": True}, {"cutout": 4}, {"crop_area": 0.3}])
def test_images_of_one_batch_are_augmented_differently(choice: dict[str, Any]) -> None:
    """torchvision's transforms apply the same draws to all images of a batch."""
    params = AugmentParams(**choice)
    same = IMAGES[:1].expand(64, -1, -1, -1)
    results = augment(same, draws_for(params), params)
    assert len({image.numpy().tobytes() for image in results}) > (1 if "flip" in choice else 20)


def test_two_parts_of_a_batch_give_the_same_images_as_the_whole() -> None:
    params = EVERYTHING
    draws = draws_for(params)
    whole = augment(IMAGES, draws, params)
    for part in (torch.arange(20), torch.arange(20, 64)):
        assert torch.equal(augment(IMAGES[part], draws.take(part), params), whole[part])


def test_the_order_is_crop_shift_flip_color_jitter_policy_cutout() -> None:
    order = ("crop_area", "shift", "flip", "color_jitter", "policy", "cutout")
    steps = sorted(
        (kind for kind in KINDS if "mixup" not in kind[0]), key=lambda kind: order.index(next(iter(kind[0])))
    )
    params = AugmentParams(**{key: value for choices, _ in steps for key, value in choices.items()})
    draws = draws_for(params)
    expected = IMAGES
    for choices, fields in steps:
        expected = augment(expected, Draws(**{name: getattr(draws, name) for name in fields}), AugmentParams(**choices))
    assert torch.equal(augment(IMAGES, draws, params), expected)


def test_the_same_seed_draws_the_same_values_and_another_seed_others() -> None:
    params = EVERYTHING
    drawn = [[choice for choice in draws_for(params, seed=seed) if choice is not None] for seed in (1, 1, 2)]
    first, same, other = drawn
    assert len(first) == len(Draws._fields)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("choices", "fields"), KINDS)
def test_draws_of_one_augmentation_do_not_depend_on_others_and_disabled_ones_draw_nothing(
    choices: dict[str, Any], fields: set[str]
) -> None:
    alone, beside = draws_for(AugmentParams(**choices)), draws_for(EVERYTHING)
    assert {name for name in Draws._fields if getattr(alone, name) is not None} == fields
    assert all(torch.equal(getattr(alone, name), getattr(beside, name)) for name in fields)


def test_the_input_images_are_not_changed() -> None:
    before = IMAGES.clone()
    params = EVERYTHING
    augment(IMAGES, draws_for(params), params)
    assert torch.equal(IMAGES, before)


SMALLER = EVERYTHING.model_copy(update={"train_size": 5})


def test_images_are_resized_to_the_trained_size_and_all_but_the_crop_acts_on_them_there() -> None:
    """The draws too, so that a cutout or the rectangle of cutmix is as large as its pixels say."""
    resized = at_trained_size(IMAGES, SMALLER)
    assert resized.shape == (64, 3, 5, 6) == (*IMAGES.shape[:2], *trained_size(SMALLER, 10, 12))
    uncropped = SMALLER.model_copy(update={"crop_area": 1.0})
    draws = draws_for(uncropped)
    own = draw(uncropped.model_copy(update={"train_size": None}), len(IMAGES), (5, 6), np.random.default_rng(0))
    assert own is not None
    for choice, expected in zip(draws, own, strict=True):
        assert (choice is None and expected is None) or torch.equal(drawn(choice), drawn(expected))
    at_once = augment(IMAGES, draws, uncropped)
    assert torch.equal(at_once, augment(resized, own, uncropped.model_copy(update={"train_size": None})))
    assert augment(IMAGES, draws_for(SMALLER), SMALLER).shape == resized.shape


def test_the_trained_size_alone_is_enough_to_do() -> None:
    params = AugmentParams(train_size=5)
    assert torch.equal(augment(IMAGES, draws_for(params), params), at_trained_size(IMAGES, params))
    same = AugmentParams(train_size=10)
    assert draw(same, len(IMAGES), (10, 12), np.random.default_rng(0)) is None
    assert at_trained_size(IMAGES, same) is IMAGES


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whole_image_is_resized_as_by_prepare(channels: int) -> None:
    images = IMAGES[:8, :channels, :, :10]
    found = at_trained_size(images, AugmentParams(train_size=4)).numpy()
    for image, pixels in zip(images.numpy(), found, strict=True):
        by_pillow = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
        expected = np.asarray(by_pillow.resize((4, 4), Image.Resampling.BICUBIC)).reshape(4, 4, channels)
        assert np.abs(pixels.transpose(1, 2, 0).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("train_size", [16, 24, 40, 48])
def test_a_crop_that_becomes_smaller_does_not_alias(train_size: int) -> None:
    """A pattern that is too fine for the smaller size becomes grey. A single sample would show a coarse pattern."""
    stripes = (255 * (torch.arange(64) % 2)).expand(32, 1, 64, -1).to(torch.uint8)
    params = AugmentParams(crop_area=0.95, train_size=train_size)
    inside = augment(stripes, draws_for(params, 32), params)[:, :, 2:-2, 2:-2].float()
    assert (inside - 127.5).abs().mean() < 40, "a single sample gives about 64"


def test_a_crop_is_resized_to_the_trained_size_from_its_first_border_to_its_last() -> None:
    ramp = (torch.arange(60) * 4).expand(64, 1, 40, -1).to(torch.uint8)
    params = AugmentParams(crop_area=0.2, train_size=20)
    draws = draws_for(params)
    result = augment(ramp, draws, params)
    assert result.shape == (64, 1, 20, 30)
    crop = drawn(draws.crop)
    centre, side = crop[:, 1, None], crop[:, 3, None]
    place = (centre - side / 2 + side * (torch.arange(30) + 0.5) / 30) * 60 - 0.5
    assert (result[:, 0, 7] - 4 * place).abs()[:, 1:-1].max() <= 1.6


def test_a_size_that_is_larger_than_the_images_is_refused_and_the_others_refer_to_it() -> None:
    check_size(AugmentParams(train_size=8, shift=7, cutout=7), 8, 28)
    with pytest.raises(UserError, match=r"augment.train_size = 9 is larger than the prepared images of 8x28 pixels"):
        check_size(AugmentParams(train_size=9), 8, 28)
    with pytest.raises(UserError, match=r"augment.shift = 5 can remove all of an image of 4x14 pixels"):
        check_size(AugmentParams(train_size=4, shift=5), 8, 28)


def test_a_batch_of_full_size_images_has_no_more_pixels_than_the_micro_batch() -> None:
    assert full_size_batch(AugmentParams(), 32, 28, 28) == 32
    assert full_size_batch(AugmentParams(train_size=14), 32, 28, 28) == 8
    assert full_size_batch(AugmentParams(train_size=4), 32, 28, 28) == 1
