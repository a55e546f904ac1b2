"""Train, keep the best epoch, and write it as the model artifact."""

import inspect
import sys
from dataclasses import asdict

import pytorch_lightning as pl
import torch

from refit.artifacts.choices import read_batch, read_learning_rate, resolved_params
from refit.artifacts.files import write_csv, write_json
from refit.artifacts.model import model_name, write_model
from refit.artifacts.paths import BATCH, FIT, HISTORY, LEARNING_RATE, MODEL
from refit.artifacts.prepared import read_info
from refit.batches.datamodule import PreparedData
from refit.params import Params, load_params
from refit.runtime.fingerprint import code_of
from refit.runtime.stage import run_stage
from refit.systems.build import blueprint_of, build_system, check_model
from refit.systems.weights import identity
from refit.tracking.loggers import FitLoggers, chosen_loggers
from refit.tracking.store import DEBUG_TAG
from refit.tracking.watchers import watchers
from refit.training.distributed import leads_fit
from refit.training.resume import fit_state
from refit.training.train import train
from refit.training.trainer import environment, hardware_class

READS = ("seed", "augment", "model", "optimizer", "loss", "fit", "trainer", "debug")


def main(params: Params) -> None:
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    leads = leads_fit(params.trainer)  # of several processes one; the others only train
    if leads and batch.hardware != hardware_class(params.trainer):
        print(
            f"warning: the micro-batch of {batch.micro_batch} was found on {batch.hardware!r}; if memory runs out "
            "here, run: dvc repro --force --single-item scale_batch",
            file=sys.stderr,
        )
    if leads:
        print(f"learning rate {rate.learning_rate:.3g} from {rate.chosen_by}, effective batch {batch.effective_batch}")

    check_model(params.model)
    inputs = {
        "params": params.model_dump(include=set(READS), exclude={"fit": {"save_state_every"}}),
        "data": {"sha256": info.sha256, "batch": asdict(batch), "learning_rate": asdict(rate)},
        "weights": identity(params.model),
        "code": code_of("fit", (params.model.system, params.model.network)),
        "environment": environment(params.trainer),
    }
    resolved = resolved_params(params, batch, rate)
    with fit_state(inputs, params.fit.save_state_every, resolved, leads) as state:
        every_param = load_params().model_dump()  # for the record
        debug = {DEBUG_TAG: True} if params.debug.shortens else {}
        tags = {"data_sha256": info.sha256, **dict.fromkeys(debug, "true")}
        loggers = FitLoggers(chosen_loggers() if leads else None, every_param, tags, state.folder, state.step)
        pl.seed_everything(params.seed, verbose=False)
        system = build_system(params.model, info, params.optimizer, params.loss, rate.learning_rate)
        if leads and "learning_rate" not in inspect.signature(type(system)).parameters:
            print(f"warning: {type(system).__name__} takes no learning_rate, so trains with one of its own, and not "
                  f"with {rate.learning_rate:.3g}", file=sys.stderr)  # fmt: skip
        data = PreparedData(params.augment, batch.micro_batch, batch.effective_batch, params.seed)
        try:
            history, best = train(system, data, params, batch, state, watchers(loggers), loggers.each)
        except BaseException:
            loggers.fail()
            raise
        if not leads:
            return
        if params.trainer.strategy == "fsdp":  # no device has all of the trained one
            system = build_system(params.model, info)
            system.load_state_dict(best.weights)

        model = write_model(
            system.state_dict(), blueprint_of(params.model, info), data_sha256=info.sha256,
            batch_size=batch.micro_batch, params=resolved, debug=params.debug.shortens,
        )  # fmt: skip
        facts = {"fitted": model_name(model.sha256), **best.row, "epochs": len(history.rows), **debug}
        write_json(FIT, facts)
        write_csv(HISTORY, history.rows)
        loggers.log_metrics({f"best_{name}": value for name, value in best.row.items()})
        loggers.log_files(BATCH, LEARNING_RATE, HISTORY)
        loggers.finish(MODEL, torch.from_numpy(data.train.images[:2]))
    print(f"best epoch {best.row['epoch']} of {len(history.rows)}; model {model_name(model.sha256)}")


if __name__ == "__main__":
    run_stage(lambda: main(load_params().only(*READS)))
