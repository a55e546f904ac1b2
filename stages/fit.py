"""Train, keep the best epoch, and write it as the model artifact."""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import BatchChoice, LearningRateChoice, read_batch, read_learning_rate, resolved_params
from refit.artifacts.features import read_features
from refit.artifacts.files import write_csv, write_json
from refit.artifacts.metrics import changed_params, write_fit_metrics
from refit.artifacts.model import model_name, write_model
from refit.artifacts.paths import BATCH, FEATURES, FIT, HISTORY, LEARNING_RATE, MODEL
from refit.artifacts.prepared import DatasetInfo, read_info, read_split
from refit.batches.augment import full_size_batch
from refit.batches.datamodule import Batch, PreparedData, WeightedBatch
from refit.params import Params, load_params
from refit.params.reads import READS
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import code_of
from refit.runtime.stage import run_stage
from refit.systems.build import assemble, blueprint_of
from refit.systems.classifier import Classifier
from refit.systems.features import backbone_sha256
from refit.systems.freezing import freeze_first_layers
from refit.systems.weights import identity
from refit.tracking.loggers import FitLoggers, chosen_loggers
from refit.tracking.watchers import watchers
from refit.training.distributed import devices_of_fit, leads_fit, share_batch
from refit.training.pace import Pace
from refit.training.probe import train_head
from refit.training.resume import fit_state
from refit.training.train import train
from refit.training.trainer import environment


def main(params: Params) -> None:
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    machine = environment(params.trainer)
    devices = devices_of_fit(params.trainer, machine["hardware"])
    shared = share_batch(batch, params.trainer.world_size)
    leads = leads_fit(params.trainer, devices)  # of several processes one leads; the others only train
    head_alone = params.fit.train == "head"
    if leads and not head_alone:
        announce(batch, rate, machine["hardware"])
    blueprint = blueprint_of(params.model, info)
    inputs = {
        "params": params.values(*READS["fit"]),
        "data": {"sha256": info.sha256, "batch": asdict(batch), "learning_rate": asdict(rate)},
        "weights": identity(params.model),
        "code": code_of("fit", (params.model.system, params.model.network)),
        "environment": machine,
    }
    resolved = resolved_params(params, batch, rate)
    every_param = load_params()  # for the record, and what changes no result
    with fit_state(inputs, every_param.fit.save_state_every, resolved, leads) as state:
        debug = {"debug": True} if params.debug.shortens else {}
        changed = changed_params(params, batch)
        tags = {"data_sha256": info.sha256, "changed_params": changed, **dict.fromkeys(debug, "true")}
        loggers = FitLoggers(
            chosen_loggers() if leads else None, every_param.model_dump(), info, tags, state.folder, state.step
        )
        pl.seed_everything(params.seed, verbose=False)
        system = assemble(blueprint, params.optimizer, params.loss, rate.learning_rate, params.model)
        freeze_first_layers(system, params.fit.freeze_share)
        if leads and not head_alone and "learning_rate" not in inspect.signature(type(system)).parameters:
            print(f"warning: {type(system).__name__} has no argument learning_rate, so it does not train with "
                  f"{rate.learning_rate:.3g}", file=sys.stderr)  # fmt: skip
        try:
            if head_alone:
                rows, best = fit_head(system, info, params, loggers.each)
                weights = system.state_dict()
            else:
                data = PreparedData(params.augment, shared.micro_batch, shared.effective_batch, params.seed)
                if params.debug.overfit_batches:
                    data.overfit(params.debug.overfit_batches)
                rows, best, weights = train(
                    system, data, params.fit, params.trainer, params.debug, devices, shared.accumulate_grad_batches,
                    state, rate.frozen.learning_rate if rate.frozen else None,
                    [Pace(info, params.trainer, params.augment), *watchers(loggers)], loggers.each,
                )  # fmt: skip
        except BaseException:
            loggers.fail()
            raise
        if not leads:
            return
        model = write_model(
            weights, blueprint, data_sha256=info.sha256, params=resolved,
            batch_size=full_size_batch(params.augment, batch.micro_batch, *info.shape[1:]), debug=params.debug.shortens,
        )  # fmt: skip
        facts = {"fitted": model_name(model.sha256), **best, "epochs": len(rows), **debug}
        write_json(FIT, facts)
        write_fit_metrics(best, params.fit.monitor, changed)
        write_csv(HISTORY, rows)
        told = [name for name in best if name == "epoch" or name.startswith("val_")]
        loggers.log_metrics({f"best_{name}": best[name] for name in told})
        loggers.log_files(BATCH, LEARNING_RATE, HISTORY)
        loggers.finish(MODEL, torch.from_numpy(read_split("train", mapped=True).images[:2]))
    what = f"best L2 penalty {best['l2']:.3g}" if head_alone else f"best epoch {best['epoch']} of {len(rows)}"
    print(f"{what}; model {model_name(model.sha256)}")


def fit_head(
    system: pl.LightningModule, info: DatasetInfo, params: Params, loggers: Sequence[Logger]
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train the head of `system` on the features of its other layers. Returns as train_head."""
    assert isinstance(system, Classifier)  # checked by the rules
    backbone = backbone_sha256(system)

    def all_of(split: str) -> Batch | WeightedBatch:
        features = read_features(split, backbone, info.sha256)
        if features is None:
            raise UserError(f"{FEATURES} is of another network or of other images; run: dvc repro features")
        known, count = read_split(split, mapped=True), len(features)  # a debug run computes fewer
        batch = Batch(torch.from_numpy(features), torch.from_numpy(known.labels[:count]))
        return batch if known.weights is None else WeightedBatch(*batch, torch.from_numpy(known.weights[:count]))

    return train_head(system, all_of("train"), all_of("val"), params.fit, params.trainer, loggers)


def announce(batch: BatchChoice, rate: LearningRateChoice, hardware: str) -> None:
    if batch.hardware != hardware:
        print(
            f"warning: the micro-batch of {batch.micro_batch} was found on {batch.hardware!r}; if memory runs out "
            "here, run: dvc repro --force --single-item scale_batch",
            file=sys.stderr,
        )
    frozen = f" ({rate.frozen.learning_rate:.3g} in the frozen epochs)" if rate.frozen else ""
    print(
        f"learning rate {rate.learning_rate:.3g}{frozen} from {rate.chosen_by}, effective batch {batch.effective_batch}"
    )


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("fit")))
