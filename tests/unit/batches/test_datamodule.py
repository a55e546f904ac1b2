"""The loaders: the content of a batch depends only on the seed and the epoch."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.artifacts.encoded import EncodedImages, encode, write_encoded
from refit.artifacts.prepared import Split, read_split
from refit.batches.augment import Draws, augment, draw
from refit.batches.datamodule import (
    CPU,
    EVALUATION_FACTOR,
    AnyBatch,
    Batch,
    DrawnBatch,
    EvaluationLoader,
    ImageLoader,
    PreparedData,
    TrainLoader,
    augmented,
)
from refit.params import AugmentParams, Params
from refit.runtime.errors import UserError
from refit.training.trainer import make_trainer

NOTHING = AugmentParams()
ALL = AugmentParams(shift=2, flip=True, cutout=3, crop_area=0.5, color_jitter=0.4, policy="randaugment")
COUNT = 103


@pytest.fixture
def split() -> Split:
    """All 8 x 8 pixels of an image have its number, which is also its label."""
    numbers = np.arange(1, COUNT + 1, dtype=np.uint8)
    return Split(np.broadcast_to(numbers[:, None, None, None], (COUNT, 1, 8, 8)).copy(), numbers.astype(np.int64))


def loader(split: Split, batch_size: int = 8, effective: int = 16, seed: int = 0, epoch: int = 0,
           augmentation: AugmentParams = ALL) -> TrainLoader:  # fmt: skip
    return TrainLoader(split, batch_size, effective, augmentation, seed, lambda: epoch)


def joined(batches: Sequence[AnyBatch]) -> tuple[Tensor, Tensor]:
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_epoch_depends_only_on_the_seed_and_its_number(split: Split) -> None:
    first = joined(list(loader(split, seed=3, epoch=5)))
    walked_before = loader(split, seed=3, epoch=5)
    next(iter(walked_before))
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(joined(list(walked_before)), first)
    assert not same(joined(list(loader(split, seed=3, epoch=6))), first)
    assert not same(joined(list(loader(split, seed=4, epoch=5))), first)


def test_images_too_small_for_their_augmentation_are_refused(digits: Path) -> None:
    with pytest.raises(UserError, match=r"^augment\.shift = 8 can remove all of an image of 8x8 pixels"):
        PreparedData(ALL.model_copy(update={"shift": 8}), 64, 128, seed=7, folder=digits)


def test_each_epoch_has_a_different_order(split: Split) -> None:
    orders = [joined(list(loader(split, epoch=epoch)))[1] for epoch in range(3)]
    assert not any(torch.equal(orders[a], orders[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_each_epoch_augments_an_image_differently(split: Split) -> None:
    first, second = (dict(zip(*reversed(joined(list(loader(split, epoch=epoch)))), strict=True)) for epoch in (0, 1))
    first, second = ({int(label): image for label, image in epoch.items()} for epoch in (first, second))
    assert sum(not torch.equal(first[label], second[label]) for label in first.keys() & second.keys()) > COUNT / 2


def test_each_image_of_a_batch_is_augmented_by_its_own_draws(split: Split) -> None:
    images, labels = joined(list(loader(split, seed=3, epoch=5)))
    random = np.random.default_rng([3, 5])
    order = torch.from_numpy(random.permutation(COUNT)[: len(labels)])
    draws = draw(ALL, COUNT, (8, 8), random)
    assert draws is not None
    assert torch.equal(images, augment(torch.from_numpy(split.images)[order], draws.take(order), ALL))


def test_each_image_occurs_at_most_once_per_epoch_with_its_own_label(split: Split) -> None:
    batches = list(loader(split, augmentation=NOTHING))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert len(set(labels)) == len(labels)
    assert all(torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels) for batch in batches)


def test_a_loader_abandoned_in_mid_epoch_leaves_no_thread(split: Split) -> None:
    before = threading.active_count()
    batches = iter(loader(split))
    next(batches)
    assert threading.active_count() == before + 1
    del batches
    assert threading.active_count() == before


def test_a_memory_mapped_split_is_read_ahead_by_a_thread(split: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", split.images)
    mapped = Split(np.load(tmp_path / "images.npy", mmap_mode="c"), split.labels)
    plain, ahead = (iter(loader(of, augmentation=NOTHING)) for of in (split, mapped))
    assert torch.equal(next(plain).images, next(ahead).images)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")] == ["batches_0"]
    assert all(torch.equal(one.images, other.images) for one, other in zip(plain, ahead, strict=True))


def test_an_error_in_the_loader_s_thread_reaches_the_trainer(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Batch:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("refit.batches.datamodule.augment", broken)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        next(iter(loader(split)))


@pytest.mark.parametrize(("batch_size", "effective"), [(8, 16), (16, 16), (1, 2), (13, 13), (103, 103)])
def test_less_than_one_effective_batch_is_left_out(batch_size: int, effective: int, split: Split) -> None:
    walked = loader(split, batch_size, effective)
    sizes = [len(batch.labels) for batch in walked]
    assert set(sizes) == {batch_size}
    assert len(sizes) == len(walked)
    assert len(sizes) % (effective // batch_size) == 0
    assert 0 <= COUNT - sum(sizes) < effective


def test_the_left_out_remainder_differs_in_each_epoch(split: Split) -> None:
    remainders = [set(split.labels) - set(joined(list(loader(split, epoch=epoch)))[1].tolist()) for epoch in range(2)]
    assert remainders[0] != remainders[1]


def test_micro_batches_add_up_to_the_same_effective_batch(split: Split) -> None:
    """The same experiment can run on a small and on a large machine."""
    whole = list(loader(split, batch_size=32, effective=32))
    micro = list(loader(split, batch_size=8, effective=32))
    assert len(whole) == 3
    for step, batch in enumerate(whole):
        assert same(joined(micro[4 * step : 4 * step + 4]), joined([batch]))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("skipped", [0, 3])
def test_processes_take_turns_at_the_batches_of_a_single_process_from_any_step(
    skipped: int, world_size: int, split: Split
) -> None:
    alone = list(loader(split, batch_size=4, effective=16, epoch=2))
    shares = []
    for rank in range(world_size):
        own = TrainLoader(split, 4, 16, ALL, 0, lambda: 2, rank=rank, world_size=world_size)
        own.load_state_dict({"position": skipped})
        shares.append(list(own))
        assert len(own) == own.position == len(alone) // world_size
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert len(together) == len(alone) - skipped * world_size
    assert same(joined(together), joined(alone[skipped * world_size :]))


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("batch_size", [2, 7, 32, 200])
def test_each_process_evaluates_the_same_number_of_batches(batch_size: int, world_size: int, split: Split) -> None:
    shares = [EvaluationLoader(split, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(lam) for lam in shares}) == 1
    sizes = [len(batch.labels) for lam in shares for batch in lam]
    assert min(sizes) > 0
    assert max(sizes) <= batch_size
    together = [batch for step in zip(*shares, strict=True) for batch in step]
    assert torch.equal(joined(together)[0], torch.from_numpy(split.images))


def test_fewer_images_than_processes_give_a_one_line_error(split: Split) -> None:
    with pytest.raises(UserError, match=r"103 images are too few for 104 devices; lower trainer\.devices"):
        EvaluationLoader(split, 8, rank=0, world_size=104)


def test_evaluation_uses_every_image_once_in_order(split: Split) -> None:
    batches = list(EvaluationLoader(split, 32))
    assert [len(batch.labels) for batch in batches] == [32, 32, 32, 7]
    assert len(EvaluationLoader(split, 32)) == 4
    assert torch.equal(torch.cat([batch.images for batch in batches]), torch.from_numpy(split.images))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.from_numpy(split.labels))
    images, labels = batches[3]
    assert (len(images), len(labels)) == (7, 7)


@pytest.mark.parametrize("world_size", [1, 2])
def test_encoded_images_make_the_same_batches(split: Split, tmp_path: Path, world_size: int) -> None:
    assert isinstance(split.images, np.ndarray)
    write_encoded(tmp_path, "train", map(encode, split.images), (COUNT, 1, 8, 8))
    encoded = Split(EncodedImages(tmp_path, "train", (1, 8, 8)), split.labels)
    for rank in range(world_size):
        for made in (
            lambda split, rank=rank: TrainLoader(split, 8, 16, ALL, 0, lambda: 3, CPU, rank, world_size),
            lambda split, rank=rank: EvaluationLoader(split, 32, CPU, rank, world_size),
        ):
            assert len(made(encoded)) == len(made(split))
            assert same(joined(list(made(encoded))), joined(list(made(split))))
    assert all(map(torch.equal, ImageLoader(encoded, 32), ImageLoader(split, 32)))


def test_a_split_too_large_for_a_cuda_device_is_pinned_and_augmented_on_the_device(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such device is needed: the test only observes the calls."""
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    waiting = list(TrainLoader(split, 8, 16, ALL, 3, lambda: 5, torch.device("cuda")))
    assert isinstance(waiting[0], DrawnBatch)
    drawn = [choice for choice in waiting[0].draws if choice is not None]
    assert len(pinned) == len(waiting) * (2 + len(drawn))
    assert same(joined([augmented(batch, ALL) for batch in waiting]), joined(list(loader(split, seed=3, epoch=5))))


def test_lightning_moves_every_tensor_of_a_batch_to_the_device(digits: Path) -> None:
    data = PreparedData(ALL, 64, 128, seed=7, folder=digits)
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    draws = draw(ALL, 2, (8, 8), np.random.default_rng(0))
    assert draws is not None
    here = DrawnBatch(images, labels, draws)
    there = data.transfer_batch_to_device(here, torch.device("meta"), 0)
    assert isinstance(there, DrawnBatch)
    moved = [tensor for tensor in (there.images, there.labels, *there.draws) if tensor is not None]
    assert len(moved) == 2 + len(Draws._fields) - len(["lam", "box"])
    assert {tensor.device.type for tensor in moved} == {"meta"}


class Seen(pl.LightningModule):
    """Stores the batches that Lightning passes to each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.training_batches: list[Batch] = []
        self.validation_batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.training_batches.append(batch)
        return self.weight * 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_on_the_loader_s_augmented_batches_of_each_epoch(digits: Path, params: Params) -> None:
    system, data = Seen(), PreparedData(ALL, 64, 128, seed=7, folder=digits)
    make_trainer(params.trainer, max_epochs=2).fit(system, datamodule=data)
    train = read_split("train", digits)
    expected = [joined(list(loader(train, 64, 128, seed=7, epoch=epoch))) for epoch in range(2)]
    images = torch.cat([batch.images for batch in system.training_batches])
    labels = torch.cat([batch.labels for batch in system.training_batches])
    assert torch.equal(images, torch.cat([epoch[0] for epoch in expected]))
    assert torch.equal(labels, torch.cat([epoch[1] for epoch in expected]))


def test_lightning_validates_on_unaugmented_images(digits: Path, params: Params) -> None:
    system, data = Seen(), PreparedData(ALL, 64, 128, seed=7, folder=digits)
    make_trainer(params.trainer, max_epochs=1).fit(system, datamodule=data)
    val = read_split("val", digits)
    assert torch.equal(torch.cat([batch.images for batch in system.validation_batches]), torch.from_numpy(val.images))
    assert len(system.validation_batches[0].labels) == 64 * EVALUATION_FACTOR


@pytest.mark.parametrize("augmentation", [AugmentParams(train_size=5), ALL.model_copy(update={"train_size": 5})])
def test_batches_of_a_smaller_trained_size_have_the_same_order_of_labels(
    split: Split, augmentation: AugmentParams
) -> None:
    """Each image is one colour, which a resize does not change."""
    found = list(loader(split, augmentation=augmentation))
    assert all(batch.images.shape == (8, 1, 5, 5) for batch in found)
    full = joined(list(loader(split, augmentation=augmentation.model_copy(update={"train_size": None}))))
    images, labels = joined(found)
    assert torch.equal(labels, full[1])
    if augmentation.shift == 0:
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_a_device_resizes_the_batches_that_were_drawn_for_it(split: Split) -> None:
    """Of images that are on the device, a loader gives drawn batches."""
    augmentation = AugmentParams(train_size=5)
    draws = draw(augmentation, COUNT, (8, 8), np.random.default_rng(0))
    assert draws is not None
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    batch = DrawnBatch(images, labels, draws.take(torch.arange(COUNT)).to(torch.device("cpu")))
    assert augmented(batch, augmentation).images.shape == (COUNT, 1, 5, 5)


def test_few_images_to_memorise_are_the_same_pixels_in_training_and_validation(digits: Path) -> None:
    data = PreparedData(AugmentParams(train_size=5, shift=2), 32, 32, 0, digits)
    data.only(np.arange(4))
    (batch,) = TrainLoader(data.train, 4, 4, data.augmentation, 0, lambda: 0)
    assert batch.images.shape == (4, 1, 5, 5)
    order = np.random.default_rng([0, 0]).permutation(4)
    assert np.array_equal(batch.images.numpy(), data.val.images[order])
    assert np.array_equal(batch.labels.numpy(), data.val.labels[order])
    assert data.train.images.shape == (4, 1, 8, 8), "loggers show what the model takes"
