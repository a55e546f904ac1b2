"""Train, keep the best epoch, and write it as the model artifact."""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from refit.data.module import PreparedData
from refit.data.prepared import read_info
from refit.files import write_csv, write_json
from refit.model_file import MODEL, build_classifier, write_model
from refit.params import FitParams, Params, load_params
from refit.stage import run_stage
from refit.training.callbacks import EpochFacts, History, moving_average
from refit.training.choices import BATCH, LEARNING_RATE, read_batch, read_learning_rate
from refit.training.run_logger import RunLogger
from refit.training.trainer import hardware_class, make_trainer

READS = ("seed", "augment", "model", "optimizer", "loss", "fit", "trainer")
EVALUATION = Path("data/evaluation")


def main(params: Params) -> None:
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    if batch.hardware != hardware_class(params.trainer):
        print(
            f"warning: the micro-batch of {batch.micro_batch} was found on {batch.hardware!r}; if memory runs out "
            "here, run: dvc repro --force --single-item scale_batch",
            file=sys.stderr,
        )
    print(f"learning rate {rate.learning_rate:.3g} from {rate.chosen_by}, effective batch {batch.effective_batch}")

    pl.seed_everything(params.seed, verbose=False)
    system = build_classifier(params.model, info, params.optimizer, params.loss, rate.learning_rate)
    data = PreparedData(params.augment, batch.micro_batch, batch.effective_batch, params.seed)
    if params.trainer.compile:
        system.network.compile(mode=params.trainer.compile)
    history = History()
    logger = RunLogger(load_params().model_dump(), {"data_sha256": info.sha256})  # the whole file, for the record
    try:
        with TemporaryDirectory() as folder:
            best = ModelCheckpoint(
                folder,
                monitor=params.fit.monitor,
                mode=_mode(params.fit),
                save_weights_only=params.fit.ema_decay is None,  # an average is only in a whole checkpoint
            )
            trainer = make_trainer(
                params.trainer,
                default_root_dir=folder,
                max_epochs=params.fit.max_epochs,
                accumulate_grad_batches=batch.accumulate_grad_batches,
                gradient_clip_val=params.fit.gradient_clip_val,
                enable_checkpointing=True,
                callbacks=[history, best, *_chosen(params.fit), EpochFacts(history)],
                logger=logger,
            )
            trainer.fit(system, datamodule=data)
            system.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    except BaseException:
        logger.fail()
        raise

    best_of = min if _mode(params.fit) == "min" else max
    kept = best_of(history.rows, key=lambda row: row[params.fit.monitor])
    model = write_model(system, params.model, info, batch.micro_batch, params.model_dump(include=set(READS)))
    write_json(EVALUATION / "fit.json", {**kept, "epochs": len(history.rows)})
    write_csv(EVALUATION / "history.csv", history.rows)
    logger.log_metrics({f"best_{name}": value for name, value in kept.items()})
    logger.log_files(BATCH, LEARNING_RATE, EVALUATION / "history.csv")
    exportable = system.network.to(memory_format=torch.contiguous_format)
    logger.finish(MODEL, exportable, torch.from_numpy(data.train.images[:2]))
    print(f"best epoch {kept['epoch']} of {len(history.rows)}; model {model.sha256[:12]}")


def _mode(fit: FitParams) -> str:
    return "min" if fit.monitor == "val_loss" else "max"


def _chosen(fit: FitParams) -> Iterator[Callback]:
    if fit.patience is not None:
        yield EarlyStopping(fit.monitor, mode=_mode(fit), patience=fit.patience)
    if fit.ema_decay is not None:
        yield moving_average(fit.ema_decay)


if __name__ == "__main__":
    run_stage(main, reads=READS)
