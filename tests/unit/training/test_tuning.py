"""The tuning stages are reproducible, report only trials that ran, and have no side effects."""

import gc
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refit.artifacts.choices import BatchChoice, LearningRateChoice, read_batch, read_learning_rate
from refit.artifacts.files import write_json
from refit.artifacts.prepared import read_info
from refit.batches.datamodule import Batch, PreparedData
from refit.params import BatchParams, Params
from refit.runtime.errors import UserError
from refit.systems.build import build_system
from refit.systems.classifier import Classifier
from refit.training import tuning
from refit.training.tuning import (
    choose_effective_batch,
    find_learning_rate,
    range_test_batch,
    suggest_learning_rate,
)
from stages import find_lr, scale_batch
from tests.fixtures import Changed


@pytest.fixture(autouse=True, scope="module")
def _collect_little_garbage() -> Iterator[None]:
    """Lightning's scaler collects garbage at each size, which is slow with this many imported modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def batch_params(size: Any = "auto", max_size: int = 256, budget: float = 1.0) -> BatchParams:
    return BatchParams(size=size, max_size=max_size, memory_budget=budget)


class TestEffectiveBatch:
    @pytest.mark.parametrize(
        ("images", "max_size", "expected"),
        [(60_000, 256, 256), (60_000, 300, 256), (1168, 256, 64), (1024, 64, 64), (1023, 64, 32), (1, 256, 2)],
    )
    def test_auto_is_a_power_of_two_that_gives_at_least_16_steps_per_epoch(
        self, images: int, max_size: int, expected: int
    ) -> None:
        assert choose_effective_batch(batch_params(max_size=max_size), images) == expected

    @pytest.mark.parametrize("max_size", [2, 3, 100])
    def test_auto_is_never_more_than_max_size(self, max_size: int) -> None:
        assert choose_effective_batch(batch_params(max_size=max_size), 60_000) <= max_size

    @pytest.mark.parametrize("size", [2, 37, 100])
    def test_a_given_size_is_used_unchanged(self, size: int) -> None:
        assert choose_effective_batch(batch_params(size, max_size=8), 100) == size

    def test_a_size_above_the_number_of_training_images_fails_with_an_error_that_names_both(self) -> None:
        with pytest.raises(UserError, match=r"batch\.size = 101 exceeds the 100 training images"):
            choose_effective_batch(batch_params(101), 100)


@pytest.fixture
def build(digits: Path, changed: Changed) -> Callable[..., Classifier]:
    def made(network: str = "mlp", width: int = 16) -> Classifier:
        params = changed({"model.network": network, "model.width": width, "optimizer.schedule": "constant"})
        torch.manual_seed(0)
        system = build_system(params.model, read_info(digits), params.optimizer, params.loss)
        assert isinstance(system, Classifier)
        return system

    return made


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each optimizer step, observed from outside."""
    sizes: list[int] = []
    seen: list[int] = []
    step, optimizer_step = Classifier.training_step, torch.optim.AdamW.step

    def watched(self: Classifier, batch: Batch, batch_idx: int) -> Tensor:
        seen.append(len(batch.labels))
        return step(self, batch, batch_idx)

    def watched_optimizer(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        result = optimizer_step(self, *args, **kwargs)
        sizes.append(sum(seen))
        seen.clear()
        return result

    monkeypatch.setattr(Classifier, "training_step", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_optimizer)
    return sizes


Scale = Callable[..., BatchChoice]


@pytest.fixture
def scale(build: Callable[..., Classifier], digits: Path, params: Params) -> Scale:
    def run(effective: int = 64, budget: float = 1.0, system: Classifier | None = None) -> BatchChoice:
        data = PreparedData(params.augment, effective, effective, 0, digits)
        choice, seconds_an_image = tuning.scale_batch(
            system or build(), data, batch_params(budget=budget), params.trainer
        )
        assert seconds_an_image > 0
        return choice

    return run


class TestScaler:
    def test_the_whole_batch_is_chosen_if_it_fits_and_each_smaller_size_really_ran(
        self, scale: Scale, stepped: list[int]
    ) -> None:
        choice = scale(64)
        assert (choice.micro_batch, choice.accumulate_grad_batches, choice.effective_batch) == (64, 1, 64)
        assert [trial["size"] for trial in choice.tried] == stepped == [2, 4, 8, 16, 32, 64]
        assert all(trial["fits"] for trial in choice.tried)
        assert choice.hardware == "cpu"

    @pytest.mark.parametrize("effective", [1, 2, 37, 48, 90])
    def test_the_largest_trial_is_the_whole_batch_if_it_is_not_a_power_of_two(
        self, effective: int, scale: Scale, stepped: list[int]
    ) -> None:
        choice = scale(effective)
        assert choice.micro_batch == effective
        assert stepped[-1] == effective

    @pytest.mark.parametrize("largest", [2, 16])
    def test_the_largest_size_within_the_memory_budget_is_chosen(
        self, largest: int, scale: Scale, stepped: list[int]
    ) -> None:
        needs = {trial["size"]: trial["bytes"] for trial in scale(64).tried}
        assert sorted(needs.values()) == list(needs.values())
        stepped.clear()
        choice = scale(64, budget=(needs[largest] + needs[2 * largest]) / 2 / 2**30)
        assert choice.micro_batch == largest
        assert choice.accumulate_grad_batches == 64 // largest
        assert largest in stepped
        assert max(stepped) == largest, "a size over the budget was used for training"
        assert [trial["size"] for trial in choice.tried if not trial["fits"]] == [2 * largest]

    def test_the_memory_estimate_covers_the_saved_activations(self, build: Any, scale: Scale) -> None:
        """For two hidden layers and 10 classes: at least each layer's output once, four bytes per number."""
        system = build("mlp", 512)
        needs = {trial["size"]: trial["bytes"] for trial in scale(64, system=system).tried}
        weights = sum(weight.numel() for weight in system.parameters())
        assert needs[64] >= 4 * (4 * weights + 64 * (64 + 512 + 512 + 10))
        assert needs[64] - needs[32] >= 4 * 32 * (64 + 512 + 512 + 10)

    @pytest.mark.parametrize("effective", [1, 37, 48, 64, 90])
    def test_if_nothing_fits_the_error_names_the_key(self, effective: int, scale: Scale, stepped: list[int]) -> None:
        with pytest.raises(UserError, match=r"no batch fits: .* batch\.memory_budget .*; raise it"):
            scale(effective, budget=1e-6)
        assert stepped == []

    @pytest.mark.parametrize("largest", [0, 8])
    def test_running_out_of_memory_after_the_forward_pass_also_counts(
        self, largest: int, scale: Scale, stepped: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first step of AdamW creates its state. On an accelerator, memory often runs out at that point."""
        step = torch.optim.AdamW.step

        def limited(self: torch.optim.AdamW, closure: Callable[[], Any]) -> Any:
            result = step(self, closure)
            if stepped[-1] > largest:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return result

        monkeypatch.setattr(torch.optim.AdamW, "step", limited)
        if largest:
            assert scale(64).micro_batch == largest
        else:
            with pytest.raises(UserError, match="no batch fits"):
                scale(64)

    def test_an_error_in_the_network_is_not_taken_for_out_of_memory(self, scale: Scale, build: Any) -> None:
        system = build()

        def broken(images: Tensor) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        system.network.forward = broken
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            scale(64, system=system)

    def test_the_result_is_reproducible(self, scale: Scale) -> None:
        assert scale(64, budget=0.0004) == scale(64, budget=0.0004)


def random_states() -> list[bytes]:
    return [
        repr(random.getstate()).encode(),
        repr(np.random.get_state()).encode(),
        torch.get_rng_state().numpy().tobytes(),
    ]


def weights_of(system: Classifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in system.state_dict().items()}


Find = Callable[..., Any]


@pytest.fixture
def find(build: Callable[..., Classifier], digits: Path, changed: Changed) -> Find:
    def run(system: Classifier | None = None, micro_batch: int = 32, batch: int = 32) -> Any:
        params = changed({})
        data = PreparedData(params.augment, micro_batch, batch, 0, digits)
        return find_learning_rate(system or build(), data, params.optimizer, params.trainer)

    return run


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("stage", ["scale", "find"])
def test_tuning_changes_no_weights_random_states_or_files(
    stage: str, network: str, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    system = build(network, 4)
    weights, states, own = weights_of(system), random_states(), set(vars(system))
    request.getfixturevalue(stage)(system=system)
    assert random_states() == states
    assert all(torch.equal(value, weights[name]) for name, value in system.state_dict().items())
    assert not {"training_step", "on_train_batch_end"} & (set(vars(system)) - own)
    assert list(tmp_path.iterdir()) == []


class TestLearningRate:
    def test_the_curve_covers_the_rates_and_contains_the_suggestion(self, find: Find) -> None:
        choice, curve = find()
        rates = [point["learning_rate"] for point in curve]
        assert choice.chosen_by == "find_lr"
        assert choice.learning_rate == choice.suggestion
        assert rates[0] < choice.suggestion < rates[-1]
        assert rates == sorted(rates)
        assert rates[0] == pytest.approx(1e-6, rel=0.5)
        assert 1e-4 < choice.suggestion < 1

    def test_the_suggested_rate_trains_the_network(self, find: Find, build: Any, digits: Path, params: Params) -> None:
        """After training at that rate, the loss is well below that of chance."""
        choice, _ = find()
        system = build()
        optimizer = torch.optim.AdamW(system.parameters(), lr=choice.learning_rate)
        loader = PreparedData(params.augment, 32, 32, 0, digits)
        images, labels = torch.from_numpy(loader.train.images), torch.from_numpy(loader.train.labels)
        for _ in range(2):
            for part in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).chunk(36):
                optimizer.zero_grad()
                torch.autograd.backward(torch.nn.functional.cross_entropy(system.network(images[part]), labels[part]))
                optimizer.step()
        loss = torch.nn.functional.cross_entropy(system.eval().network(images), labels)
        assert loss < 0.5 * np.log(10)

    def test_the_result_is_reproducible(self, find: Find) -> None:
        assert find() == find()

    def test_each_point_is_an_optimizer_step_of_the_effective_batch(self, find: Find, stepped: list[int]) -> None:
        _, curve = find(micro_batch=16, batch=32)
        assert set(stepped) == {32}
        assert len(curve) <= len(stepped) == tuning.LEARNING_RATE_STEPS

    @pytest.mark.parametrize(
        ("effective_batch", "train_images", "size"),
        [
            (256, 60_000, 256),
            (256, 25_599, 128),
            (128, 3_068, 16),
            (64, 1_169, 8),
            (64, 100, 8),
            (4, 100, 4),
            (36, 100, 9),
        ],
    )
    def test_all_steps_together_use_one_epoch_or_the_smallest_possible_batches(
        self, effective_batch: int, train_images: int, size: int
    ) -> None:
        assert range_test_batch(effective_batch, train_images) == size

    def test_a_system_s_own_hook_also_runs(self, find: Find, build: Any) -> None:
        system, seen = build(), []
        system.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(batch_idx)
        find(system=system)
        assert len(seen) == tuning.LEARNING_RATE_STEPS

    def test_a_too_short_curve_gives_the_fallback(self, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tuning, "LEARNING_RATE_STEPS", 8)
        choice, curve = find()
        assert (choice.learning_rate, choice.chosen_by, choice.suggestion) == (0.001, "fallback", None)
        assert len(curve) <= 8

    @pytest.mark.filterwarnings("ignore:Encountered `nan` values")  # from torchmetrics, about the NaN loss
    def test_a_non_finite_loss_gives_the_fallback(self, find: Find, build: Any) -> None:
        system = build()
        next(system.network.parameters()).data.fill_(float("nan"))
        choice, curve = find(system=system)
        assert (choice.chosen_by, curve) == ("fallback", [])


RATES = np.logspace(-6, 0, 100)


class TestSuggestion:
    def test_the_suggestion_is_three_times_the_rate_of_the_steepest_descent_per_decade(self) -> None:
        losses = 2.3 - 2 / (1 + np.exp(-8 * (np.log10(RATES) + 2.5)))
        suggestion = suggest_learning_rate(RATES, losses)
        assert suggestion is not None
        assert np.log10(suggestion) == pytest.approx(-2.5 + np.log10(3), abs=0.1)

    def test_a_descent_after_the_lowest_loss_is_ignored(self) -> None:
        decades = np.log10(RATES)
        losses = np.interp(decades, [-6, -4, -3, -1, 0], [2.3, 2.3, 2.0, 9.0, 3.0])
        suggestion = suggest_learning_rate(RATES, losses)
        assert suggestion is not None
        assert -4.1 < np.log10(suggestion) < -2.9

    def test_the_suggestion_is_well_below_a_rate_at_which_training_diverges(self) -> None:
        """A curve that once ruined a fit: flat, with a dip just before the end."""
        losses = np.interp(np.log10(RATES), [-6, -2, -1.2, -0.85, -0.6, 0], [0.69, 0.688, 0.68, 0.6, 0.7, 1.0])
        suggestion = suggest_learning_rate(RATES, losses)
        assert suggestion is not None
        assert np.log10(suggestion) == pytest.approx(-1.6, abs=0.1)

    @pytest.mark.parametrize("last", [2.3, 9.0])
    def test_there_is_no_suggestion_if_the_loss_never_falls(self, last: float) -> None:
        assert suggest_learning_rate(RATES, np.linspace(2.3, last, 100)) is None

    @pytest.mark.parametrize("points", [0, 1, 10])
    def test_there_is_no_suggestion_with_too_few_points(self, points: int) -> None:
        assert suggest_learning_rate(RATES[:points], np.linspace(2.3, 1, points)) is None


class TestSmoothing:
    def test_the_losses_of_the_steps_are_recovered_from_lightning_s_running_mean(self) -> None:
        losses = np.random.default_rng(0).uniform(1, 3, 40)
        mean, running = 0.0, []
        for step, loss in enumerate(losses, start=1):
            mean = 0.98 * mean + 0.02 * loss
            running.append(mean / (1 - 0.98 ** (step + 1)))
        assert tuning._losses_of_steps(np.array(running)) == pytest.approx(losses)

    @pytest.mark.parametrize("seed", range(5))
    def test_noise_of_eight_image_batches_changes_the_suggestion_by_less_than_a_factor_of_three(
        self, seed: int
    ) -> None:
        losses = 2.3 - 2 / (1 + np.exp(-4 * (np.log10(RATES) + 2.5)))
        exact = suggest_learning_rate(RATES, tuning._smoothed(RATES, losses))
        noisy = losses + np.random.default_rng(seed).normal(0, 0.3, len(losses))
        found = suggest_learning_rate(RATES, tuning._smoothed(RATES, noisy))
        assert exact is not None
        assert found is not None
        assert exact / 3 < found < exact * 3

    def test_a_diverging_loss_does_not_hide_the_descent_before_it(self) -> None:
        losses = 2.3 - 2 / (1 + np.exp(-8 * (np.log10(RATES) + 2.5)))
        losses[-10:] = 1e6
        smoothed = tuning._smoothed(RATES, losses)
        assert smoothed.min() < 0.6
        assert smoothed.max() <= 4 * 2.3


def test_the_stages_write_what_the_next_one_reads(
    prepared_workspace: Path, changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    params = changed({"batch.max_size": 32})
    Path("params.yaml").write_text("fit: {max_epochs: 7}")
    scale_batch.main(params)
    assert re.search(r"^about \d.* an epoch, \d.* for 7 epochs$", capsys.readouterr().out, re.MULTILINE)
    find_lr.main(params)
    batch, rate = read_batch(), read_learning_rate()
    assert (batch.effective_batch, batch.micro_batch, batch.chosen_by) == (32, 32, "auto")
    assert rate.chosen_by == "find_lr"
    assert {path.name for path in (prepared_workspace / "data/tuning").iterdir()} == {
        "batch.json", "learning_rate.json", "learning_rate.csv", "frozen_learning_rate.csv"
    }  # fmt: skip


def test_the_range_test_uses_the_settings_of_the_fit(prepared_workspace: Path, changed: Changed) -> None:
    params = changed({
        "optimizer.name": "muon", "optimizer.schedule": "plateau", "loss.class_weights": "balanced",
        "augment.mixup": 0.2, "augment.policy": "trivialaugment", "fit.gradient_clip_algorithm": "value",
    })  # fmt: skip
    Path("params.yaml").write_text("{}")
    scale_batch.main(params)
    find_lr.main(params)
    rate = read_learning_rate()
    assert rate.chosen_by == "find_lr"
    assert 1e-4 < rate.learning_rate < 1


def test_with_a_given_learning_rate_no_range_test_runs(
    prepared_workspace: Path, changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    find_lr.main(changed({"optimizer.learning_rate": 0.123}))  # no batch size was chosen, and none is needed
    assert read_learning_rate() == LearningRateChoice(0.123, "params", suggestion=None)
    assert Path("data/tuning/learning_rate.csv").read_text() == "learning_rate,loss\n"
    assert capsys.readouterr().out == "learning rate 0.123, chosen by params: no range test\n"


def test_the_fallback_is_reported_as_a_warning(
    prepared_workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "LEARNING_RATE_STEPS", 8)
    write_json(Path("data/tuning/batch.json"), vars(BatchChoice(32, 32, 1, "auto", "cpu", 2**30, [])))
    find_lr.main(params)
    assert (
        "warning: the range test found no learning rate; fit uses optimizer.fallback_learning_rate = 0.001"
        in capsys.readouterr().err
    )
    assert read_learning_rate().chosen_by == "fallback"


@pytest.mark.parametrize(("read", "stage"), [(read_batch, "scale_batch"), (read_learning_rate, "find_lr")])
def test_a_missing_choice_gives_an_error_that_names_its_stage(
    read: Callable[[], object], stage: str, workspace: Path
) -> None:
    with pytest.raises(UserError, match=f"does not exist; run: dvc repro {stage}"):
        read()
