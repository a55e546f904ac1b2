"""Train, keep the best epoch, and write it as the model artifact."""

import inspect
import sys
from dataclasses import asdict

import pytorch_lightning as pl
import torch

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import BatchChoice, LearningRateChoice, read_batch, read_learning_rate, resolved_params
from refit.artifacts.files import write_csv, write_json
from refit.artifacts.metrics import changed_params, write_fit_metrics
from refit.artifacts.model import model_name, write_model
from refit.artifacts.paths import BATCH, FIT, HISTORY, LEARNING_RATE, MODEL
from refit.artifacts.prepared import read_info
from refit.batches.augment import full_size_batch
from refit.batches.datamodule import PreparedData
from refit.params import Params, load_params
from refit.params.reads import READS
from refit.runtime.fingerprint import code_of
from refit.runtime.stage import run_stage
from refit.systems.build import assemble, blueprint_of
from refit.systems.weights import identity
from refit.tracking.loggers import FitLoggers, chosen_loggers
from refit.tracking.watchers import watchers
from refit.training.distributed import devices_of_fit, leads_fit, share_batch
from refit.training.pace import Pace
from refit.training.resume import fit_state
from refit.training.train import train
from refit.training.trainer import environment


def main(params: Params) -> None:
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    machine = environment(params.trainer)
    devices = devices_of_fit(params.trainer, machine["hardware"])
    shared = share_batch(batch, params.trainer.world_size)
    leads = leads_fit(params.trainer, devices)  # of several processes one leads; the others only train
    if leads:
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
        if leads and "learning_rate" not in inspect.signature(type(system)).parameters:
            print(f"warning: {type(system).__name__} has no argument learning_rate, so it does not train with "
                  f"{rate.learning_rate:.3g}", file=sys.stderr)  # fmt: skip
        data = PreparedData(params.augment, shared.micro_batch, shared.effective_batch, params.seed)
        if params.debug.overfit_batches:
            data.overfit(params.debug.overfit_batches)
        try:
            history, best = train(
                system, data, params.fit, params.trainer, params.debug, devices, shared.accumulate_grad_batches, state,
                rate.frozen.learning_rate if rate.frozen else None,
                [Pace(info, params.trainer, params.augment), *watchers(loggers)], loggers.each,
            )  # fmt: skip
        except BaseException:
            loggers.fail()
            raise
        if not leads:
            return
        # With fsdp each device has only a part of the trained system.
        weights = best.weights if params.trainer.strategy == "fsdp" else system.state_dict()
        model = write_model(
            weights, blueprint, data_sha256=info.sha256, params=resolved,
            batch_size=full_size_batch(params.augment, batch.micro_batch, *info.shape[1:]), debug=params.debug.shortens,
        )  # fmt: skip
        facts = {"fitted": model_name(model.sha256), **best.row, "epochs": len(history.rows), **debug}
        write_json(FIT, facts)
        write_fit_metrics(best.row, params.fit.monitor, changed)
        write_csv(HISTORY, history.rows)
        told = [name for name in best.row if name == "epoch" or name.startswith("val_")]
        loggers.log_metrics({f"best_{name}": best.row[name] for name in told})
        loggers.log_files(BATCH, LEARNING_RATE, HISTORY)
        loggers.finish(MODEL, torch.from_numpy(data.train.images[:2]))
    print(f"best epoch {best.row['epoch']} of {len(history.rows)}; model {model_name(model.sha256)}")


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
