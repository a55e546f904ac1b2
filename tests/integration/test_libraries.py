"""Networks of timm in every stage: a vision transformer, a ConvNeXt and an EfficientNet."""

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import save_file
from torch import Tensor

from refit.artifacts.checked import stage_params
from refit.artifacts.model import read_record
from refit.artifacts.paths import MODEL
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.inference.predictor import read_model
from refit.params import check_params
from refit.params.reads import READS
from stages import find_lr, fit, predict, scale_batch, test
from tests.fixtures import Fit, Values, watched_by
from tests.integration.test_resume import PowerCutError, Witness, same

NETWORKS = ["timm:test_vit", "timm:test_convnext", "timm:test_efficientnet"]
WHOLE: dict[str, Any] = {"model.width": None, "model.dropout": None}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as `prepare` packs them, in 32x32 pixels, which these networks need. Not to be written to."""
    folder = tmp_path_factory.mktemp("digits32")
    values = check_params({"data": {"root": str(folder), "image_size": 32}})
    pack(open_source(values.data), values.data, values.seed, folder)
    return folder


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


@pytest.mark.parametrize("network", NETWORKS[::2])  # a ConvNeXt is fitted and read below
def test_a_network_of_timm_goes_through_all_stages_without_the_internet(
    network: str, prepared_workspace: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    keys = {"model.network": network, "model.network_arguments": {"drop_path_rate": 0.1}, "batch.max_size": 32}
    short = {"fit.max_epochs": 1, "debug.limit_train_batches": 8, "tracking.loggers": []}
    Path("params.yaml").write_text(json.dumps(values(WHOLE | keys | short)))
    params = check_params(values(WHOLE | keys | short))
    for stage, main in {
        "scale_batch": scale_batch.main, "find_lr": find_lr.main, "fit": fit.main, "test": test.main,
        "predict": predict.main,
    }.items():  # fmt: skip
        main(params.only(*READS[stage]))
    assert json.loads(Path("data/tuning/learning_rate.json").read_text())["chosen_by"] == "find_lr"
    assert json.loads(Path("data/predictions/summary.json").read_text())["images"] > 0
    record = read_record()
    assert (record.network, record.network_arguments) == (network, {"drop_path_rate": 0.1})


@pytest.mark.parametrize("network", NETWORKS)
def test_an_interrupted_fit_of_a_network_of_timm_ends_with_the_same_bits(network: str, fitted: Fit) -> None:
    keys: dict[str, Any] = {
        "model__network": network, "model__width": None, "model__dropout": None, "fit__save_state_every": 1e-9,
        "model__network_arguments": {"drop_path_rate": 0.2, "drop_rate": 0.2}, "debug__limit_train_batches": 6,
    }  # fmt: skip

    def run(cut_off_in: int | None = None) -> tuple[Witness, dict[str, Tensor]]:
        witness = Witness(cut_off_in)
        with watched_by(witness):
            return witness, fitted(**keys)

    whole, weights = run()
    for cut in (3, 8):
        with pytest.raises(PowerCutError):
            run(cut)
    resumed, resumed_weights = run()
    assert min(resumed.drawn) > 6
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)


def test_the_learning_rate_falls_from_group_to_group_of_layers_in_the_range_test_and_in_the_fit(
    fitted: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its share of backbone_learning_rate, and in the order from the head on."""
    rates: list[list[float]] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *args: Any, **keys: Any) -> Any:
        result = step(optimizer, *args, **keys)
        rates.append([group["lr"] for group in optimizer.param_groups])
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    keys: dict[str, Any] = {
        "model__network": "timm:test_vit", "model__width": None, "model__dropout": None,
        "optimizer__layer_decay": 0.5, "optimizer__backbone_learning_rate": 0.1, "optimizer__schedule": "constant",
        "debug__limit_train_batches": 2, "fit__max_epochs": 1,
    }  # fmt: skip
    fitted(**keys)
    find_lr.main(stage_params("find_lr"))
    in_fit, in_range_test = rates[0], rates[10]
    expected = [1.0, *(0.1 * 0.5**depth for depth in range(1, 8))]  # six blocks and the embeddings of patches
    for found in (in_fit, in_range_test):
        factors = [rate / found[0] for rate in found]
        assert sorted(set(factors), reverse=True) == pytest.approx(expected)
        assert factors[:2] == [1.0, 1.0], "the head's groups are not the first"
    assert in_fit[0] == 0.01


class FirstLoss(Callback):
    losses: list[float]

    def on_fit_start(self, *_: object) -> None:
        self.losses = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.losses.append(float(loss.detach()))


@pytest.mark.parametrize("network", [*NETWORKS, "timm:deit_tiny_distilled_patch16_224"])
def test_the_first_loss_of_pretrained_weights_is_ln_classes_and_their_file_is_not_needed_later(
    network: str, fitted: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path("data/weights/photos.safetensors")
    file.parent.mkdir()
    torch.manual_seed(3)
    save_file(timm.create_model(network.removeprefix("timm:")).state_dict(), file)
    first = FirstLoss()
    with watched_by(first):
        weights = fitted(
            model__network=network, model__width=None, model__dropout=None, model__weights=str(file),
            fit__max_epochs=1, fit__freeze_epochs=1, debug__limit_train_batches=3,
        )  # fmt: skip
    assert first.losses[0] == pytest.approx(math.log(10), abs=1e-6)
    assert first.losses[-1] < first.losses[0]
    file.unlink()
    no_network(monkeypatch)
    system, record = read_model()
    assert record.network == network
    assert all(torch.equal(value, weights[name]) for name, value in system.state_dict().items())
    assert json.loads((MODEL / "model.json").read_text())["network"] == network
