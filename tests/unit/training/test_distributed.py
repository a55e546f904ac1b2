"""How devices share a batch, and which devices Lightning gets."""

import pytest
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ParallelStrategy

from refit.artifacts.choices import BatchChoice
from refit.runtime.errors import UserError
from refit.training.distributed import devices_of_fit, share_batch
from refit.training.trainer import make_trainer
from tests.fixtures import Changed


def test_sync_batchnorm_without_a_cuda_device_is_refused(changed: Changed) -> None:
    params = changed({"trainer.accelerator": "auto", "trainer.devices": 2, "trainer.sync_batchnorm": True}).trainer
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm: true needs CUDA devices, not cpu; set it to false"):
        devices_of_fit(params, "cpu")


@pytest.mark.parametrize(
    ("effective", "fits", "devices", "micro", "accumulated"),
    [
        (64, 64, 2, 32, 1),
        (64, 32, 2, 32, 1),
        (64, 16, 2, 16, 2),
        (64, 16, 4, 16, 1),
        (96, 32, 3, 32, 1),
        (60, 8, 2, 6, 5),
    ],
)
def test_devices_share_the_effective_batch(
    effective: int, fits: int, devices: int, micro: int, accumulated: int
) -> None:
    choice = BatchChoice(effective, fits, effective // fits, "params", "cpu", None, [])
    shared = share_batch(choice, devices)
    assert (shared.effective_batch, shared.micro_batch, shared.accumulate_grad_batches) == (
        effective,
        micro,
        accumulated,
    )
    assert micro * accumulated * devices == effective
    assert micro <= fits


@pytest.mark.parametrize(("effective", "fits", "devices"), [(64, 16, 3), (2, 2, 2), (22, 8, 2)])
def test_a_batch_that_cannot_be_shared_fails_with_a_one_line_error(effective: int, fits: int, devices: int) -> None:
    choice = BatchChoice(effective, fits, effective // fits, "params", "cpu", None, [])
    with pytest.raises(UserError, match=rf"batch of {effective} images.* by {devices} devices.*trainer.devices"):
        share_batch(choice, devices)


@pytest.mark.parametrize(
    ("strategy", "of_lightning"),
    [("auto", DDPStrategy), ("ddp_find_unused_parameters_true", DDPStrategy), ("fsdp", FSDPStrategy)],
)
def test_lightning_gets_devices_machines_and_strategy(
    strategy: str, of_lightning: type[ParallelStrategy], changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such devices are needed: the Trainer is created and not run."""
    for package in ("lightning_fabric", "pytorch_lightning"):
        monkeypatch.setattr(f"{package}.accelerators.cuda.num_cuda_devices", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keys: dict[str, object] = {
        "trainer.accelerator": "gpu", "trainer.devices": 4, "trainer.num_nodes": 2, "trainer.strategy": strategy,
        "trainer.sync_batchnorm": True, "fit.gradient_clip_val": None, "optimizer.weight_decay": 0,
    }  # fmt: skip
    params = changed(keys).trainer
    trainer = make_trainer(params, **devices_of_fit(params, "cuda"))
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (4, 2, 8)
    assert isinstance(trainer.strategy, of_lightning)
    assert trainer.strategy._layer_sync is not None
    if isinstance(trainer.strategy, DDPStrategy):
        finds = trainer.strategy._ddp_kwargs.get("find_unused_parameters", False)
        assert finds == (strategy == "ddp_find_unused_parameters_true")
