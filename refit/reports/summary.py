"""A summary of the last run, as text and as Markdown."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refit.artifacts.checked import changes_since_checked
from refit.artifacts.files import read_json
from refit.artifacts.model import ModelRecord, model_name, read_fit_params, read_record
from refit.artifacts.paths import (
    BATCH,
    FINDINGS,
    FIT,
    LEARNING_RATE,
    MODEL,
    PREDICTIONS_PAGE,
    PREDICTIONS_SUMMARY,
    PREPARED,
    PREPARED_PAGE,
    PREPARED_REPORT,
    REPORT,
    TEST,
)
from refit.params.training import FINE_TUNING
from refit.runtime.errors import UserError
from refit.tasks.task import TASKS
from refit.tracking.model_runs import RunLink, accuracy_of_head_alone, find_run
from refit.tracking.outbox import SYNC, models_in_outbox

OF_PHOTOS = "timm:tf_efficientnet_lite0"
"""The network of the recipes photos and photos-finetune."""
_COMMAND = re.compile("`(.+?)`")  # in the advice
_WIDE = 44  # columns of a command
_CHANGES = 5  # of params.yaml that are named
_NO_BREAK = "\N{NO-BREAK SPACE}"
_CHOSEN_BY = {
    "auto": "from scale_batch",
    "find_lr": "from find_lr",
    "params": "from params.yaml",
    "fallback": "from optimizer.fallback_learning_rate: find_lr had no suggestion",
}


class Fact(NamedTuple):
    name: str
    text: str
    link: str | None = None


class Step(NamedTuple):
    """What the user may do next."""

    command: str
    what: str


def as_text(facts: Sequence[Fact], steps: Sequence[Step]) -> str:
    lines = [
        f"  {command:<{_WIDE}} {what}" if len(command) <= _WIDE else f"  {command}\n{'':{_WIDE + 2}} {what}"
        for command, what in steps
    ]
    return "\n".join(["Result", *as_lines(facts), "", "What next", *lines])


def as_lines(facts: Sequence[Fact]) -> list[str]:
    """Plain text, at most 80 columns wide unless a name is longer."""
    lines = []
    for name, text, link in facts:
        lines.append(_wrap(name, text))
        if link and link.startswith("http"):
            lines.append(f"  {link}")
    return lines


def as_markdown(facts: Sequence[Fact]) -> str:
    """A table with links."""
    rows = [f"| {name} | {f'[{text}]({link})' if link else text} |" for name, text, link in facts]
    return "\n".join(["| | |", "|---|---|", *rows, ""])


def read_facts(root: Path = Path()) -> list[Fact]:
    """The facts of the run whose outputs are in `root`/data, and MLflow's run of its model.

    Raises UserError if a file of the run is missing.
    """
    data, batch, rate, fit, test, found = (
        read_json(root / file, "dvc repro")
        for file in (PREPARED / "dataset.json", BATCH, LEARNING_RATE, FIT, TEST, FINDINGS)
    )
    record = read_record(root / MODEL)
    sha256, task = record.sha256, TASKS[record.task]
    run = find_run(sha256)
    counts = ", ".join(f"{count:,} {split}" for split, count in data["counts"].items())
    shape = "x".join(map(str, data["shape"]))
    validation = ", ".join(
        f"{name.replace('val_', 'validation ')} {value:.4f}" for name, value in fit.items() if name.startswith("val_")
    )
    warnings = []
    if test.get("debug"):
        warnings.append(
            Fact(
                "DEBUG RUN",
                "the debug section of params.yaml shortened it: these are not the metrics of a fully trained model",
            )
        )
    if test.get("tested") != model_name(sha256):  # only one stage was run, such as fit
        warnings.append(Fact("TEST IS STALE", "the metrics and the report are of another model; run: dvc repro"))
    if newer := _newer_than_model(record, data, {} if "l2" in fit else _fit_choices(root), batch, rate):
        told = f"the {' and the '.join(newer)} shown here {'is' if len(newer) == 1 else 'are'} not of this model"
        warnings.append(Fact("FIT IS STALE", f"{told}; run: dvc repro"))
    return [
        *warnings,
        *_params_warning(root),
        Fact("data", f"{data['source']}: {counts} images of {len(data['classes'])} classes, {shape}"),
        *([_head_fact(fit, validation)] if "l2" in fit else _fit_facts(batch, rate, fit, validation)),
        *(Fact(name, text) for name, text in task.summary(test, found["baselines"])),
        *(_head_alone(data, fit) if run else []),
        Fact("model", f"{MODEL}, sha256 {model_name(sha256)}"),
        Fact("report", str(REPORT), (root / REPORT).resolve().as_uri()),
        *_data_report(root),
        *_prediction_facts(root, sha256),
        *mlflow_facts(run),
        *(Fact("advice", f"{finding['what']}. What may help: {finding['remedy']}") for finding in found["findings"]),
    ]


def _newer_than_model(
    record: ModelRecord,
    data: Mapping[str, Any],
    fitted: Mapping[str, Any],
    batch: Mapping[str, Any],
    rate: Mapping[str, Any],
) -> list[str]:
    """What has changed since the model was fitted: earlier stages were run alone. `fitted` are the _fit_choices."""
    found = ["data"] if record.data_sha256 != data["sha256"] else []
    now = {"batch size": batch["effective_batch"], "learning rate": rate["learning_rate"]}
    return found + [name for name, value in fitted.items() if value != now[name]]


def _fit_choices(root: Path) -> dict[str, Any]:
    """The batch size and the learning rate that the model was fitted with; empty if an earlier version of Refit did not
    keep them."""
    try:
        params = read_fit_params(root / MODEL)
        return {"batch size": params["batch"]["size"], "learning rate": params["optimizer"]["learning_rate"]}
    except (UserError, KeyError):
        return {}


def _params_warning(root: Path) -> list[Fact]:
    """What a run that failed leaves behind: DVC keeps the values that it was given."""
    try:
        changes = changes_since_checked(root)
    except UserError as error:
        return [Fact("PARAMS.YAML", f"is not valid now, and this result is of earlier values: {error}")]
    if not changes:
        return []
    more = f" and {len(changes) - _CHANGES} more" if len(changes) > _CHANGES else ""
    told = f"this result is of earlier values: {', '.join(changes[:_CHANGES])}{more}; run: dvc repro"
    return [Fact("PARAMS.YAML", f"has changed, and {told}")]


def _fit_facts(
    batch: Mapping[str, Any], rate: Mapping[str, Any], fit: Mapping[str, Any], validation: str
) -> list[Fact]:
    parts = f"{batch['accumulate_grad_batches']} x {batch['micro_batch']}"
    return [
        Fact("batch size", f"{batch['effective_batch']} images = {parts}, {_CHOSEN_BY[batch['chosen_by']]}"),
        *(
            Fact(name, f"{choice['learning_rate']:.3g}, {_CHOSEN_BY[choice['chosen_by']]}")
            for name, choice in (("learning rate", rate), ("in frozen epochs", rate.get("frozen")))
            if choice
        ),
        Fact("best epoch", f"{fit['epoch']} of {fit['epochs']}, {validation}"),
    ]


def _head_alone(data: Mapping[str, Any], fit: Mapping[str, Any]) -> list[Fact]:
    """What the head alone reached on these images, if it was tried: what training the other layers was worth."""
    accuracy = None if "l2" in fit else accuracy_of_head_alone(data["sha256"])
    return [] if accuracy is None else [Fact("last head alone", f"test accuracy {accuracy:.4f}")]


def _head_fact(fit: Mapping[str, Any], validation: str) -> Fact:
    chosen = "from params.yaml" if fit["epochs"] == 1 else f"the best of {fit['epochs']} tried"
    return Fact("head alone", f"L2 penalty {fit['l2']:.3g}, {chosen}: {validation}")


def read_steps(root: Path = Path()) -> list[Step]:
    """What fits the run whose outputs are in `root`/data: the first command of its advice, before the rest.

    Raises UserError if a file of the run is missing.
    """
    data, found, fit = (read_json(root / file, "dvc repro") for file in (PREPARED / "dataset.json", FINDINGS, FIT))
    advised = [command for finding in found["findings"] for command in _COMMAND.findall(finding["remedy"])]
    if "l2" in fit:
        change = Step("make photos-finetune DATA=FOLDER", "train the later layers too: minutes")
        if read_record(root / MODEL).network != OF_PHOTOS:
            change = Step(" -S ".join(["dvc exp run", *FINE_TUNING]), "train the later layers too, keep both results")
        l2 = 1.0 if fit["l2"] != 1 else 0.1
        more = [Step(f"dvc exp run -S fit.l2={l2}", "another head on the same features: half a minute")]
    else:
        change, more = Step("dvc exp run -S optimizer.weight_decay=0.1", "try a change, keep both results"), []
    return [
        Step(advised[0], "try the first advice") if advised else change,
        *more,
        Step("make mlflow", "curves and pictures of every run"),
        Step("make compare", "experiments, best first"),
        Step("make promote", "promote the model if good enough"),
        *(
            [Step("dvc exp run -S data.source=folder -S data.root=FOLDER", "images in one folder per class")]
            if data["source"] == "digits"
            else []
        ),
    ]


def _data_report(root: Path) -> list[Fact]:
    """The page of the data, and what the listing of the source and people's decisions changed, if anything."""
    if not (root / PREPARED_REPORT).is_file():
        return []
    counts = read_json(root / PREPARED_REPORT, "dvc repro prepare")
    named = {"left_out": "left out", "decisions": "decisions obeyed"}
    told = ", ".join(f"{counts[key]:,} {name}" for key, name in named.items() if counts.get(key))
    text = f"{PREPARED_PAGE}: {told}" if told else str(PREPARED_PAGE)
    return [Fact("data report", text, (root / PREPARED_PAGE).resolve().as_uri())]


def _prediction_facts(root: Path, sha256: str) -> list[Fact]:
    """What this model predicted last; nothing if the predictions are of another model."""
    if not (root / PREDICTIONS_SUMMARY).is_file():
        return []
    values = read_json(root / PREDICTIONS_SUMMARY, "dvc repro predict")
    if values["model_sha256"] != sha256 or not (root / PREDICTIONS_PAGE).is_file():
        return []
    count = "1 image" if values["images"] == 1 else f"{values['images']:,} images"
    text = f"{PREDICTIONS_PAGE}: {count} ({values['of']}), {values['abstained']:,} in doubt"
    if values["of"] == "new images":  # which may be left from another data set
        text += f", as one of {values['model_knows']}"
    return [Fact("predictions", text, (root / PREDICTIONS_PAGE).resolve().as_uri())]


def mlflow_facts(run: RunLink | None) -> list[Fact]:
    """The MLflow run of the model, and the number of models in the outbox."""
    waiting = len(models_in_outbox())
    fact = (
        Fact("MLflow run", f"{run.name}, {run.run_id}", run.url) if run else Fact("MLflow run", "none for this model")
    )
    models = "1 model" if waiting == 1 else f"{waiting} models"
    return [fact, Fact("MLflow outbox", f"{models} not sent; run: {SYNC}")] if waiting else [fact]


def _wrap(name: str, text: str) -> str:
    """Filled lines; a command stays in one, so that it can be pasted."""
    unbroken = _COMMAND.sub(lambda command: command[0].replace(" ", _NO_BREAK), text)
    return textwrap.fill(unbroken, 80, initial_indent=f"  {name:<15}", subsequent_indent=" " * 17,
                         break_long_words=False, break_on_hyphens=False).replace(_NO_BREAK, " ")  # fmt: skip
