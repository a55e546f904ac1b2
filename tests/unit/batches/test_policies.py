"""Colour jitter, RandAugment and TrivialAugment: each operation matches torchvision's, with draws for each image."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from refit.batches.augment import augment
from refit.batches.policies import LEVELS, OPERATIONS, SPACES, apply_policy, draw_policy
from refit.params import AugmentParams
from tests.unit.batches.test_augment import IMAGES, draws_for

THEIRS = dict(
    zip(
        OPERATIONS,
        ["Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
         "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"],
        strict=True,
    )
)  # fmt: skip
POLICIES: dict[str, Any] = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
GREY = IMAGES[:, :1]


def smooth(images: Tensor) -> Tensor:
    """Images like photos: similar neighbouring pixels, a limited range of values, and different channels."""
    wide = torch.nn.functional.interpolate(images[:, :, :4, :5].float(), (24, 20), mode="bicubic")
    return (wide * torch.rand(len(images), 1, 1, 1, generator=torch.Generator().manual_seed(1))).clamp(0, 255).byte()


KINDS_OF_IMAGES = {"rgb": IMAGES, "grey": GREY, "photos": smooth(IMAGES), "grey photos": smooth(GREY)}


@pytest.mark.parametrize("kind", KINDS_OF_IMAGES)
@pytest.mark.parametrize("policy", SPACES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_at_each_strength_matches_torchvision(name: str, policy: str, kind: str) -> None:
    """Results may differ if the last bit of a float decides which pixel is nearest, or how a value is rounded."""
    levels = [(level, sign) for level in range(LEVELS + 1) for sign in (1, -1)]
    images, theirs = KINDS_OF_IMAGES[kind][: len(levels)], POLICIES[policy]
    strengths = torch.tensor([sign * level / LEVELS for level, sign in levels])
    ours = OPERATIONS[name](images, strengths, SPACES[policy])
    magnitudes, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    table = magnitudes(LEVELS + 1, *images.shape[2:])
    for image, mine, (level, sign) in zip(images, ours, levels, strict=True):
        magnitude = 0.0 if table is None else float(table[level]) * (sign if signed else 1)
        magnitude = round(magnitude, 5)  # otherwise torchvision moves by 15 pixels in place of 16
        expected = theirs._apply_image_or_video_transform(image, THEIRS[name], magnitude, "nearest", {})
        difference = (mine.int() - expected.int()).abs()
        if name in ("shear_x", "shear_y", "solarize"):
            assert (difference > 0).float().mean() < 0.05
        elif name in ("brightness", "color", "contrast", "sharpness"):
            assert difference.max() <= 1
        else:
            assert torch.equal(mine, expected)
    if kind == "photos" and name != "identity":
        assert (ours != images).flatten(1).any(1).float().mean() > 0.1


def test_randaugment_draws_two_operations_at_level_9_and_trivialaugment_one_at_any_level() -> None:
    operations, strengths = draw_policy("randaugment", 20_000, np.random.default_rng(0))
    assert operations.shape == strengths.shape == (20_000, 2)
    assert set(strengths.flatten().tolist()) == {torch.tensor(0.3).item(), torch.tensor(-0.3).item()}
    assert (strengths > 0).float().mean() == pytest.approx(0.5, abs=0.02)
    for drawn in operations.T:
        torch.testing.assert_close(drawn.bincount() / 20_000, torch.full((14,), 1 / 14), atol=0.01, rtol=0)
    assert (operations[:, 0] == operations[:, 1]).float().mean() == pytest.approx(1 / 14, abs=0.01)
    operations, strengths = draw_policy("trivialaugment", 20_000, np.random.default_rng(0))
    assert operations.shape == (20_000, 1)
    assert sorted(set((30 * strengths).round().flatten().tolist())) == list(range(-30, 31))


@pytest.mark.parametrize("policy", SPACES)
@pytest.mark.parametrize("device", ["cpu", "other device"])
def test_each_image_gets_its_own_operations_in_order(policy: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu":  # the method for other devices, which also works on the CPU
        monkeypatch.setattr("refit.batches.policies.SELECTS_ON", "nowhere")
    params = AugmentParams(policy=policy)
    draws = draws_for(params)
    assert draws.operations is not None
    assert draws.strengths is not None
    before = IMAGES.clone()
    results = apply_policy(IMAGES, draws.operations, draws.strengths, policy)
    assert torch.equal(IMAGES, before)
    assert torch.equal(augment(IMAGES, draws, params), results)
    for image, numbers, strengths, result in zip(IMAGES, draws.operations, draws.strengths, results, strict=True):
        alone = image[None]
        for number, strength in zip(numbers, strengths, strict=True):
            alone = list(OPERATIONS.values())[number](alone, strength[None], SPACES[policy])
        assert torch.equal(alone[0], result)


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["rgb", "grey"])
def test_color_jitter_matches_torchvision_with_each_image_s_own_factors(
    images: Tensor,
) -> None:
    params = AugmentParams(color_jitter=0.4)
    draws = draws_for(params)
    assert draws.jitter is not None
    for image, factors, result in zip(images, draws.jitter.tolist(), augment(images, draws, params), strict=True):
        expected = F.adjust_saturation(
            F.adjust_contrast(F.adjust_brightness(image, factors[0]), factors[1]), factors[2]
        )
        assert (result.int() - expected.int()).abs().max() <= 2
        assert (result != expected).float().mean() < 0.05
    assert len({tuple(factors) for factors in draws.jitter.tolist()}) == len(images)


def test_color_jitter_covers_its_whole_range_and_no_more() -> None:
    factors = draws_for(AugmentParams(color_jitter=0.4), 20_000).jitter
    assert factors is not None
    for of_one_kind in factors.T:
        assert 0.6 <= of_one_kind.min() < 0.61
        assert 1.39 < of_one_kind.max() <= 1.4
        assert of_one_kind.mean() == pytest.approx(1, abs=0.01)
