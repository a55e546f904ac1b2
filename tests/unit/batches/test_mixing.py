"""Mixup and cutmix: which images are mixed, by how much, and how the loss uses both labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refit.artifacts.prepared import Split, read_info
from refit.batches.augment import Draws, augment, draw
from refit.batches.datamodule import (
    AnyBatch,
    MixedBatch,
    PreparedData,
    TrainLoader,
    WeightedBatch,
    WeightedMixedBatch,
    augmented,
)
from refit.batches.mixing import mix
from refit.params import AugmentParams
from refit.systems.build import build_system
from refit.training.trainer import make_trainer
from tests.fixtures import Build, Changed

COUNT, SIZE = 103, (10, 12)
MIXES: list[dict[str, object]] = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


@pytest.fixture
def split() -> Split:
    """Each image has a single grey level, twice its label."""
    numbers = np.arange(COUNT, dtype=np.uint8)
    return Split(np.broadcast_to(2 * numbers[:, None, None, None], (COUNT, 1, *SIZE)).copy(), numbers.astype(np.int64))


def batches(split: Split, params: AugmentParams, batch_size: int = 8, effective: int = 16, epoch: int = 0,
            start: int = 0) -> list[AnyBatch]:  # fmt: skip
    loader = TrainLoader(split, batch_size, effective, params, 3, lambda: epoch)
    loader.load_state_dict({"position": start})
    return list(loader)


def joined(batches: Sequence[AnyBatch]) -> dict[str, Tensor]:
    names = ("images", "labels", "other_labels", "lam")
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mixes", MIXES, ids=str)
def test_a_label_s_lam_is_its_image_s_fraction_of_the_mix(mixes: dict[str, Any], split: Split) -> None:
    """All pixels of an unmixed image are equal, so the mean shows how much of each image is in the mix."""
    params = AugmentParams(**mixes)
    whole = joined([batch for epoch in range(20) for batch in batches(split, params, epoch=epoch)])
    assert whole["images"].dtype == torch.uint8
    expected = 2 * (whole["lam"] * whole["labels"] + (1 - whole["lam"]) * whole["other_labels"])
    error = (whole["images"].double().mean(dim=(1, 2, 3)) - expected).abs()
    assert error.max() < 0.51, "a difference above the rounding error"
    assert (whole["lam"] < 0.9).float().mean() > 0.2
    assert ((whole["lam"] >= 0) & (whole["lam"] <= 1)).all()


def test_mixup_blends_each_pixel_and_cutmix_covers_a_rectangle(split: Split) -> None:
    blended = joined(batches(split, AugmentParams(mixup=0.4)))
    assert all(image.unique().numel() == 1 for image in blended["images"])
    covered = joined(batches(split, AugmentParams(cutmix=1.0)))
    rectangles = 0
    for image, label, other in zip(covered["images"][:, 0], covered["labels"], covered["other_labels"], strict=True):
        assert set(image.unique().tolist()) <= {2 * int(label), 2 * int(other)}
        inside = (image == 2 * other).nonzero()
        if len(inside):
            top, left = inside.amin(0)
            bottom, right = inside.amax(0) + 1
            assert len(inside) == (bottom - top) * (right - left)
            rectangles += 1
    assert rectangles > 50


def test_with_mixup_and_cutmix_each_image_draws_one_of_them(split: Split) -> None:
    params = AugmentParams(mixup=8.0, cutmix=1.0)
    images = joined([batch for epoch in range(5) for batch in batches(split, params, epoch=epoch)])
    cut = torch.tensor([image.unique().numel() > 1 for image in images["images"]])
    assert 0.35 < cut.float().mean() < 0.6
    flat = images["lam"][~cut]
    assert ((flat > 0.1) & (flat < 0.9)).float().mean() > 0.8


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lam_follows_the_beta_distribution(alpha: float) -> None:
    """The mean is 1/2 and the variance 1 / (4 (2 alpha + 1)). Only unclipped cutmix rectangles count."""
    drawn = draw(AugmentParams(mixup=alpha), 20_000, (32, 32), np.random.default_rng(0))
    assert drawn is not None
    assert drawn.lam is not None
    assert drawn.lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert drawn.lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    cut = draw(AugmentParams(cutmix=alpha), 20_000, (256, 256), np.random.default_rng(0))
    assert cut is not None
    assert cut.box is not None
    box = cut.box[((cut.box > 0) & (cut.box < 256)).all(1)].double()  # not clipped by the border
    assert len(box) > 1000
    sides = box[:, 2:] - box[:, :2]
    assert (sides[:, 0] - sides[:, 1]).abs().max() == 0, "the rectangle must have the image's aspect ratio"


@pytest.mark.parametrize("mixes", MIXES, ids=str)
def test_micro_batches_and_a_start_in_mid_epoch_give_the_same_mixes(mixes: dict[str, Any], split: Split) -> None:
    params = AugmentParams(shift=2, flip=True, **mixes)
    whole = joined(batches(split, params, batch_size=32, effective=32))
    for size in (1, 8, 16):
        micro = batches(split, params, batch_size=size, effective=32)
        assert same(joined(micro), whole)
        assert same(joined(batches(split, params, size, 32, start=32 // size)),
                    {name: value[32:] for name, value in whole.items()})  # fmt: skip


@pytest.mark.parametrize("batch_size", [8, 103])
def test_an_image_is_mixed_with_the_next_one_in_the_epoch_s_order_which_wraps_around(
    batch_size: int, split: Split
) -> None:
    labels = joined(batches(split, AugmentParams(mixup=0.4), batch_size, batch_size))
    order = torch.from_numpy(np.random.default_rng([3, 0]).permutation(COUNT))
    used = COUNT // batch_size * batch_size
    assert torch.equal(labels["labels"], order[:used])
    assert torch.equal(labels["other_labels"], order.roll(-1)[:used])


def test_both_images_are_augmented_before_they_are_mixed(split: Split) -> None:
    params = AugmentParams(shift=2, cutout=3, cutmix=1.0)
    order = torch.from_numpy(np.random.default_rng([3, 0]).permutation(COUNT))
    random = np.random.default_rng([3, 0])
    random.permutation(COUNT)
    draws = draw(params, COUNT, SIZE, random)
    assert draws is not None
    alone = augment(torch.from_numpy(split.images)[order], draws.take(order), AugmentParams(shift=2, cutout=3))
    taken = draws.take(order)
    assert taken.lam is not None
    assert taken.box is not None
    expected = mix(alone, taken.lam[:-1], taken.box[:-1], params)
    seen = joined(batches(split, params))
    assert torch.equal(seen["images"], expected[: len(seen["images"])])


def test_mixing_does_not_change_the_other_draws() -> None:
    def drawn(params: AugmentParams) -> Draws:
        draws = draw(params, COUNT, SIZE, np.random.default_rng([3, 5]))
        assert draws is not None
        return draws

    alone, mixed = drawn(AugmentParams(shift=2)), drawn(AugmentParams(shift=2, mixup=0.4, cutmix=1.0))
    assert alone.shift is not None
    assert mixed.shift is not None
    assert torch.equal(alone.shift, mixed.shift)


def test_an_unmixed_batch_unpacks_as_images_and_labels(split: Split) -> None:
    for params in (AugmentParams(), AugmentParams(shift=2)):
        assert [len(batch) for batch in batches(split, params)] == [2] * (COUNT // 16 * 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_loss_and_accuracy_weight_both_labels_by_lam(smoothing: float, changed: Changed, digits: Path) -> None:
    params = changed({"augment.mixup": 0.4, "loss.label_smoothing": smoothing, "model.dropout": 0.0})
    torch.manual_seed(0)
    system: Any = build_system(params.model, read_info(digits), params.optimizer, params.loss, 0.01)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels, others = torch.randint(0, 10, (2, 32), generator=random)
    lam = torch.rand(32, generator=random)
    loss = system.training_step(MixedBatch(images, labels, others, lam), 0)
    logits = system.network(images)
    targets = lam[:, None] * nn.functional.one_hot(labels, 10) + (1 - lam[:, None]) * nn.functional.one_hot(others, 10)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    hits = targets.gather(1, logits.argmax(1, keepdim=True)).sum()
    torch.testing.assert_close(system.train_sums, torch.stack((expected.detach() * 32, hits)))


def test_the_weights_of_both_images_of_a_mixture_count_by_lam(build: Build) -> None:
    system = build(model__dropout=0.0)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels, others = torch.randint(0, 10, (2, 32), generator=random)
    lam, weights, other_weights = torch.rand((3, 32), generator=random)
    logits = system.network(images)
    loss = system.training_loss(logits, WeightedMixedBatch(images, labels, others, lam, weights, other_weights))
    own, other = (nn.functional.cross_entropy(logits, of, reduction="none") for of in (labels, others))
    torch.testing.assert_close(loss, (lam * weights * own + (1 - lam) * other_weights * other).mean())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("augmentation", [AugmentParams(), AugmentParams(shift=2), AugmentParams(mixup=0.4)])
def test_each_image_of_a_batch_has_its_own_weight(split: Split, augmentation: AugmentParams, rank: int) -> None:
    weighted = replace(split, weights=(split.labels + 0.5).astype(np.float32))
    for drawn in TrainLoader(weighted, 8, 16, augmentation, 0, lambda: 0, rank=rank, world_size=2):
        batch = augmented(drawn, augmentation)
        assert isinstance(batch, WeightedBatch | WeightedMixedBatch)
        assert torch.equal(batch.weights, batch.labels + 0.5)
        if isinstance(batch, WeightedMixedBatch):
            assert torch.equal(batch.other_weights, batch.other_labels + 0.5)


def test_a_fit_on_mixed_images_uses_the_loader_s_batches_and_learns_the_digits(changed: Changed, digits: Path) -> None:
    params = changed({"augment.mixup": 0.2, "augment.cutmix": 1.0, "model.network": "cnn", "model.width": 8})
    torch.manual_seed(0)
    system: Any = build_system(params.model, read_info(digits), params.optimizer, params.loss, 0.01)
    data = PreparedData(params.augment, 32, 64, 3, digits)
    seen: list[AnyBatch] = []
    step = system.training_step

    def watched(batch: MixedBatch, batch_idx: int) -> Tensor:
        seen.append(batch)
        loss: Tensor = step(batch, batch_idx)
        return loss

    system.training_step = watched
    trainer = make_trainer(params.trainer, max_epochs=4, accumulate_grad_batches=2)
    trainer.fit(system, datamodule=data)
    first = batches(data.train, params.augment, 32, 64)
    assert same(joined(seen[: len(first)]), joined(first))
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert trainer.callback_metrics["train_accuracy"] < 0.9, "the training accuracy counts only a part of most labels"


def test_pinned_batches_are_mixed_on_the_device_as_on_the_cpu(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such device is needed: the test runs the device's code on the CPU."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    params = AugmentParams(shift=2, mixup=0.4, cutmix=1.0)
    waiting = list(TrainLoader(split, 8, 16, params, 3, lambda: 0, torch.device("cuda")))
    assert {len(batch.labels) for batch in waiting} == {9}
    assert same(joined([augmented(batch, params) for batch in waiting]), joined(batches(split, params)))
