"""Batch scaling and the learning-rate range test: Lightning's Tuner, made deterministic and free of side effects."""

import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner.tuning import Tuner
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from refit.artifacts.choices import BatchChoice, LearningRateChoice
from refit.batches.datamodule import Batch, PreparedData, TrainLoader
from refit.params import BatchParams, OptimizerParams, TrainerParams
from refit.runtime.errors import UserError
from refit.runtime.progress import Lines
from refit.systems.freezing import FrozenBackbone
from refit.systems.optimizers import FACTOR
from refit.training.trainer import hardware_class, make_trainer

MIN_STEPS_AN_EPOCH = 16
LEARNING_RATES = (1e-6, 1.0)
LEARNING_RATE_STEPS = 100
LEAST_IMAGES = 8  # in a step of the range test
_RUNNING = 0.98  # decay of Lightning's running mean of the loss
_WIDTH = 0.3  # decades: the standard deviation of the smoothing
_PEAK = 3.0  # the peak of a fit's schedule ÷ the rate at which the loss falls fastest (docs/lightning.md)
_DIVERGED = 4.0  # times the first losses
_FEWEST = 10  # steps from which nothing can be concluded
_FLAT = 1e-3  # nats per decade of learning rate: a smaller slope is rounding error

Curve = list[dict[str, float]]
FloatArray = npt.NDArray[np.float64]


def choose_effective_batch(batch: BatchParams, train_images: int) -> int:
    """The batch size that the optimizer sees. It depends on the parameters and the data, never on the hardware.

    Raises UserError if batch.size is larger than the train split.
    """
    if batch.size != "auto":
        if batch.size > train_images:
            raise UserError(f"batch.size = {batch.size} exceeds the {train_images} training images; lower it")
        return batch.size
    size = 2
    while size * 2 <= min(batch.max_size, train_images // MIN_STEPS_AN_EPOCH):
        size *= 2
    return size


def scale_batch(
    system: pl.LightningModule, data: PreparedData, batch: BatchParams, trainer_params: TrainerParams
) -> tuple[BatchChoice, float]:
    """Find the largest micro-batch that fits, among the effective batch and its repeated halves. Returns it, and the
    seconds an image of the fastest step.

    Runs one optimizer step at each size, and returns only a size that ran. On a CPU a size fits if the memory of a step
    (weights, gradients, optimizer state, inputs and saved activations) is within `batch.memory_budget`; on an
    accelerator, if it does not run out of memory. Raises UserError if no size fits.
    """
    hardware = hardware_class(trainer_params)
    budget = int(batch.memory_budget * 2**30) if hardware == "cpu" else None
    candidates = _halves(data.effective_batch)
    data.batch_size = candidates[0]
    trials = _Trials(candidates[0], budget)
    with TemporaryDirectory() as folder, isolate_rng(), trials.watch(system, data):
        trainer = make_trainer(trainer_params, default_root_dir=folder, max_epochs=1)
        Tuner(trainer).scale_batch_size(
            system,
            datamodule=data,
            mode="power",
            steps_per_trial=1,
            init_val=candidates[0],
            max_trials=len(candidates),
            max_val=2 * candidates[-1],  # out of reach: the Tuner returns max_val without running it
        )
    micro_batch = max(trials.fitting)
    choice = BatchChoice(
        effective_batch=data.effective_batch,
        micro_batch=micro_batch,
        accumulate_grad_batches=data.effective_batch // micro_batch,
        chosen_by="auto" if batch.size == "auto" else "params",
        hardware=hardware,
        memory_budget=budget,
        tried=[
            {"size": size, "bytes": trials.bytes.get(size), "fits": size in trials.fitting} for size in trials.sizes
        ],
    )
    return choice, trials.seconds_an_image


def range_test_batch(effective_batch: int, train_images: int) -> int:
    """The number of images in a step of the range test: at most the effective batch, of which it is a repeated half.

    All steps together see each training image at most once, unless that would leave fewer than LEAST_IMAGES a step.
    """
    size = effective_batch
    while size % 2 == 0 and size > LEAST_IMAGES and size * LEARNING_RATE_STEPS > train_images:
        size //= 2
    return size


def find_both_learning_rates(
    system: pl.LightningModule, data: PreparedData, optimizer: OptimizerParams, trainer_params: TrainerParams
) -> tuple[LearningRateChoice, Curve, Curve]:
    """For a fit with frozen epochs: the learning rate of the epochs after them, with that of the frozen epochs; and the
    two curves. Each is found as the fit will use it: the first by training the head alone; the second by training all
    layers after the head has learned for an epoch, because a new head would hide what the layers before it need."""
    frozen = FrozenBackbone(1)
    of_frozen, frozen_curve = find_learning_rate(system, data, optimizer, trainer_params, frozen)
    _train_head(system, data, trainer_params, FrozenBackbone(1, of_frozen.learning_rate))
    choice, curve = find_learning_rate(system, data, optimizer, trainer_params)
    return replace(choice, frozen=of_frozen), curve, frozen_curve


def _train_head(
    system: pl.LightningModule, data: PreparedData, trainer_params: TrainerParams, frozen: FrozenBackbone
) -> None:
    """Train for an epoch with a frozen backbone, at the constant learning rate of `frozen`."""
    with TemporaryDirectory() as folder, isolate_rng():
        trainer = make_trainer(
            trainer_params,
            callbacks=[frozen],
            quiet=True,
            default_root_dir=folder,
            max_epochs=1,
            accumulate_grad_batches=data.effective_batch // data.batch_size,
            limit_val_batches=0,
        )
        trainer.fit(system, datamodule=data)
    frozen.set_frozen(False)


def find_learning_rate(
    system: pl.LightningModule,
    data: PreparedData,
    optimizer: OptimizerParams,
    trainer_params: TrainerParams,
    frozen: FrozenBackbone | None = None,
) -> tuple[LearningRateChoice, Curve]:
    """The learning-rate range test of Smith (2017): the chosen rate and the loss curve.

    A parameter group whose learning rate has a factor keeps it: the test finds the head's rate. With `frozen` only the
    head learns, as in the frozen epochs of a fit.
    """
    with TemporaryDirectory() as folder, isolate_rng(), _as_in_the_fit(system, frozen):
        range_test = make_trainer(
            trainer_params,
            default_root_dir=folder,
            max_epochs=-1,  # unlimited: num_training ends the test
            accumulate_grad_batches=data.effective_batch // data.batch_size,
            check_val_every_n_epoch=10**6,
        )
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):  # no progress bar in a log
            finder = Tuner(range_test).lr_find(
                system,
                datamodule=data,
                min_lr=LEARNING_RATES[0],
                max_lr=LEARNING_RATES[1],
                num_training=LEARNING_RATE_STEPS,
                update_attr=False,
            )
    assert finder is not None
    rates, losses = np.array(finder.results["lr"]), _losses_of_steps(np.array(finder.results["loss"]))
    usable = np.isfinite(losses)
    rates = rates[usable]
    losses = _smoothed(rates, losses[usable]) if len(rates) else losses[usable]
    curve = [{"learning_rate": rate, "loss": loss} for rate, loss in zip(rates.tolist(), losses.tolist(), strict=True)]
    suggestion = suggest_learning_rate(rates, losses)
    if suggestion is None:
        return LearningRateChoice(optimizer.fallback_learning_rate, "fallback", None), curve
    return LearningRateChoice(suggestion, "find_lr", suggestion), curve


@contextmanager
def _as_in_the_fit(system: pl.LightningModule, frozen: FrozenBackbone | None) -> Iterator[None]:
    """Freeze the backbone, keep the factors of the parameter groups, and print a line now and then where the output is
    not a terminal. It patches the system, because the Tuner removes the Trainer's callbacks and its rates are those of
    all groups."""
    lines = Lines("range test, step", LEARNING_RATE_STEPS)
    begin, scale, end = system.on_train_epoch_start, system.on_before_optimizer_step, system.on_train_batch_end

    def begins() -> None:
        begin()
        if frozen is not None:
            frozen.hold(system)

    def scaled(optimizer: torch.optim.Optimizer) -> None:
        scale(optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= group.get(FACTOR, 1.0)  # the Tuner's schedule sets it anew after each step

    def ran(outputs: Any, batch: Batch, batch_idx: int) -> None:
        end(outputs, batch, batch_idx)
        if not sys.stderr.isatty():
            lines.show(system.trainer.global_step)

    if frozen is not None:
        frozen.freeze(system)
    system.on_train_epoch_start = begins  # type: ignore[method-assign]
    system.on_before_optimizer_step = scaled  # type: ignore[method-assign]
    system.on_train_batch_end = ran  # type: ignore[method-assign]
    try:
        yield
    finally:
        del system.on_train_epoch_start, system.on_before_optimizer_step, system.on_train_batch_end
        if frozen is not None:
            frozen.set_frozen(False)


def suggest_learning_rate(rates: FloatArray, losses: FloatArray) -> float | None:
    """The peak learning rate for a fit: three times the rate at which the smoothed loss falls fastest per decade.

    None if the loss never falls. Rates above that of the lowest loss are ignored, because the loss diverges there, and
    the suggestion is not above it. It is at most a tenth of the rate at which the loss returns to its initial value: if
    the loss falls only shortly before it diverges, a higher rate would ruin a fit.

    Lightning's own suggestion is the steepest slope over the learning rate itself. In an exponential range, whose low
    rates are closest together, it is about fifty times too low.
    """
    lowest = int(np.argmin(losses)) if len(losses) > _FEWEST else 0
    if lowest == 0:
        return None
    back = rates[lowest:][losses[lowest:] > losses[0]]
    slope = np.gradient(losses[: lowest + 1], np.log10(rates[: lowest + 1]))
    steepest = int(np.argmin(slope))
    if slope[steepest] >= -_FLAT:
        return None
    suggestion = min(_PEAK * rates[steepest], rates[lowest])
    return float(min(suggestion, back[0] / 10) if len(back) else suggestion)


def _losses_of_steps(running: FloatArray) -> FloatArray:
    """The loss of each step, from Lightning's running mean, whose bias correction counts one step too many."""
    sums = running * (1 - _RUNNING ** (np.arange(1, len(running) + 1) + 1))
    losses: FloatArray = (sums - _RUNNING * np.concatenate([[0.0], sums[:-1]])) / (1 - _RUNNING)
    return losses


def _smoothed(rates: FloatArray, losses: FloatArray) -> FloatArray:
    """The mean of the neighbouring losses, by a Gaussian of the learning rate's logarithm. A diverging loss counts as
    _DIVERGED times the first ones, so that it does not hide those before it."""
    decades = np.log10(rates)
    weights = np.exp(-0.5 * ((decades[:, None] - decades) / _WIDTH) ** 2)
    smoothed: FloatArray = weights @ np.minimum(losses, _DIVERGED * losses[:_FEWEST].mean()) / weights.sum(axis=1)
    return smoothed


def _halves(effective_batch: int) -> list[int]:
    """The effective batch and its repeated halves, ascending. At least 2: batch norm cannot train on one image."""
    sizes = [effective_batch]
    while sizes[0] % 2 == 0 and sizes[0] > 2:
        sizes.insert(0, sizes[0] // 2)
    return sizes


@dataclass
class _Trials:
    """Records which sizes ran and fitted. It patches the system, because the Tuner removes the Trainer's callbacks."""

    smallest: int
    budget: int | None
    """Bytes; None on an accelerator."""
    sizes: list[int] = field(default_factory=list)
    bytes: dict[int, int] = field(default_factory=dict)
    fitting: list[int] = field(default_factory=list)
    seconds_an_image: float = math.inf
    """Of the fastest step: libraries warm up in the first, and small ones are no faster."""

    @contextmanager
    def watch(self, system: pl.LightningModule, data: PreparedData) -> Iterator[None]:
        step, make_loader = system.training_step, data.train_dataloader

        lines = Lines("trying batch sizes, step", len(_halves(data.effective_batch)))

        def watched_step(batch: Batch, batch_idx: int) -> Any:
            self._began = time.perf_counter()
            size = len(batch.labels)
            self.sizes.append(size)
            return self._step_within_budget(step, batch, batch_idx, system)

        def loader() -> TrainLoader:
            if data.batch_size < self.smallest:  # after a failure the Tuner halves the size, even to 0
                raise UserError(
                    f"no batch fits: a training step of {self.smallest} images needs more memory than is available or "
                    "batch.memory_budget allows; raise it, lower data.image_size or set augment.train_size, or choose "
                    "a smaller model.network or an even batch.size"
                ) from None
            return make_loader()

        def ran(outputs: Any, batch: Batch, batch_idx: int) -> None:
            self.fitting.append(len(batch.labels))
            pace = (time.perf_counter() - self._began) / len(batch.labels)
            self.seconds_an_image = min(self.seconds_an_image, pace)
            lines.show(len(self.sizes))

        system.training_step, system.on_train_batch_end = watched_step, ran  # type: ignore[method-assign]
        data.train_dataloader = loader  # type: ignore[method-assign]
        try:
            yield
        finally:
            del system.training_step, system.on_train_batch_end, data.train_dataloader

    def _step_within_budget(
        self, step: Callable[..., Any], batch: Batch, batch_idx: int, system: pl.LightningModule
    ) -> Any:
        if self.budget is None:
            return step(batch, batch_idx)
        kept = _KeptTensors()
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            loss = step(batch, batch_idx)
        # Weights, gradients, and AdamW's two moments, the largest optimizer state.
        weights = 4 * sum(weight.nbytes for weight in system.parameters())
        needed = weights + batch.images.nbytes + kept.bytes()
        self.bytes[len(batch.labels)] = needed
        if needed > self.budget:
            # The message by which Lightning's Tuner recognises that a CPU is out of memory.
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: over batch.memory_budget")
        return loss


class _KeptTensors:
    """The memory that autograd saves for the backward pass. Each storage counts once."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}  # referenced, so that no address is reused

    def keep(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage
        return tensor

    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())
