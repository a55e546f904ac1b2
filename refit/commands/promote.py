"""Make the model that was just tested the champion, if it is good enough: `make promote`.

promote.min_accuracy and promote.margin define "good enough". The model is compared with the current champion on test
images that neither was trained on. The first champion is not compared, and with --without-comparison no other one.
"""

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np

from refit.artifacts.files import read_csv, read_json, whole_folder, write_bytes, write_csv, write_json
from refit.artifacts.model import ModelRecord, model_name, read_record
from refit.artifacts.paths import FINDINGS, MODEL, OUTCOMES, PREPARED, PROMOTION, TEST
from refit.artifacts.prepared import Split, read_hashes, read_info, read_names, read_split
from refit.evaluation.comparison import Comparison, Row, mean_interval, paired
from refit.params import Params, PromoteParams, load_params
from refit.reports.summary import Fact, as_lines, as_markdown
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError
from refit.tasks.task import TASKS
from refit.tracking.model_runs import send_to_model_run
from refit.tracking.registry import (
    CHAMPION,
    Version,
    fetch,
    find_champion,
    find_version,
    make_champion,
    register,
    short_hashes,
    was_tested,
)
from refit.tracking.store import EXPERIMENT, open_store

DOUBTFUL = 0.2  # width of the interval of a score
WITHOUT_COMPARISON = "--without-comparison"
MANUAL_PROMOTION = f"to promote the new model all the same, run: python -m refit.commands.promote {WITHOUT_COMPARISON}"
MAX_CHANGED = 0.01  # fraction of the champion's predictions; other hardware rounds differently


class Challenger(NamedTuple):
    """The model that was just tested."""

    sha256: str
    weights_sha256: str
    task: str
    score: float
    outcomes: list[Row]
    """The rows of outcomes.csv, one per test image."""
    baseline: float
    """The score of the task's simplest baseline on the same images."""

    def interval(self, confidence: float) -> tuple[float, float]:
        actual, predicted = ([row[column] for row in self.outcomes] for column in ("actual", "predicted"))
        return mean_interval(TASKS[self.task].outcome_scores(actual, predicted), confidence)


class ChampionComparison(NamedTuple):
    """The challenger compared with the champion."""

    champion: Version
    comparison: Comparison
    seen: int
    """Test images that the champion was trained or selected on, which are left out."""
    unknown: int
    """Test images whose target the champion cannot predict, as of a class that it does not know."""
    differences: list[Row]
    """The images for which the scores of the two differ."""


class Verdict(NamedTuple):
    outcome: Literal["promoted", "kept", "unchanged"]
    """unchanged: the model already is the champion."""
    why: str


def main(*, without_comparison: bool = False) -> None:
    params, challenger = load_params(), read_challenger()
    print(f"looking up the champion in MLflow, to compare model {model_name(challenger.sha256)} with it", flush=True)
    # An earlier version of Refit named a model by its weights alone.
    before = find_version(EXPERIMENT, challenger.sha256) or find_version(EXPERIMENT, challenger.weights_sha256)
    champion, versus_champion = find_champion(EXPERIMENT), None
    if champion is None:
        verdict = decide(challenger, None, params.promote)
    elif champion.sha256 == challenger.sha256:
        verdict = Verdict("unchanged", f"{champion.uri} is already this model")
    elif without_comparison:
        verdict = decide(challenger, None, params.promote, champion)
    elif before and before.was_champion and int(champion.number) < int(before.number):  # a person withdrew it
        verdict = Verdict("kept", f"{champion.uri} stays the champion: this model, {before.uri}, was champion before "
                                  "and was withdrawn; to restore it, set its alias champion in MLflow")  # fmt: skip
    else:
        versus_champion = compare_with_champion(champion, challenger, params)
        verdict = decide(challenger, versus_champion, params.promote)
    if verdict.outcome == "promoted":
        print("registering the model as the champion", flush=True)
        version, _ = register(MODEL, EXPERIMENT)
        if version.sha256 != challenger.sha256:
            raise UserError(f"{MODEL} has changed to {model_name(version.sha256)} in the meantime; run: make promote")
        verdict = Verdict("promoted", f"{version.uri} is now the champion: {verdict.why}")
        make_champion(version, verdict.why)

    if verdict.outcome == "promoted" and champion is None:
        warn_of_doubt(challenger, params.test.confidence)
    facts = as_facts(challenger, versus_champion, verdict, params.test.confidence)
    write_verdict(challenger, versus_champion, verdict, facts)
    if versus_champion:
        gain = {f"{TASKS[challenger.task].SCORE}_beside_champion": versus_champion.comparison.difference}
        with open_store():  # not to the outbox: data/promotion has it already
            send_to_model_run(challenger.sha256, gain, sorted(PROMOTION.iterdir()))
    print("\n".join(["Promotion", *as_lines(facts)]))


def read_challenger() -> Challenger:
    """Raises UserError if the model in data/model was not tested, was tested by a debug run, or was tested on images
    that are not those of data/prepared."""
    record = read_record(MODEL)
    if not was_tested(record.sha256):
        raise UserError(f"model {model_name(record.sha256)} has not been tested; run: dvc repro")
    test = read_json(TEST, "dvc repro")
    if test.get("debug"):
        raise UserError(
            f"the test of model {model_name(record.sha256)} is a debug run; undo the changes to the debug section of "
            "params.yaml, and run: dvc repro"
        )
    outcomes = read_csv(OUTCOMES)
    if [row["file"] for row in outcomes] != read_names("test"):
        raise UserError(f"{OUTCOMES} and {PREPARED} have different test images; run: dvc repro")
    task = TASKS[record.task]
    baseline = float(read_json(FINDINGS, "dvc repro")["baselines"][task.BASELINE[0]])
    score = float(test[task.SCORE])
    return Challenger(record.sha256, record.weights_sha256, record.task, score, outcomes, baseline)


def compare_with_champion(champion: Version, challenger: Challenger, params: Params) -> ChampionComparison:
    """Compare both on the test images that the champion was not trained on. Raises UserError if that is impossible."""
    files, actual = ([row[column] for row in challenger.outcomes] for column in ("file", "actual"))
    task = TASKS[challenger.task]
    print(f"{champion.uri} predicts the {len(files):,} test images again, for the comparison", flush=True)
    with TemporaryDirectory() as folder:
        saved = fetch(champion, Path(folder))
        record, predicted, hashes = predictions_of(saved.model_dir, champion, params)
    unknown = ~task.can_predict(actual, record.classes)
    if record.task != challenger.task or unknown.all():
        raise UserError(
            f"the champion {champion.uri} knows none of the current classes: it solves another task; {MANUAL_PROMOTION}"
        )
    same = [saved.predicted[file] == now for file, now in zip(files, predicted, strict=True) if file in saved.predicted]
    if same.count(False) > max(1, MAX_CHANGED * len(same)):
        raise UserError(
            f"the champion {champion.uri} now predicts something else for {same.count(False)} of {len(same)} images "
            f"than in its own test: the code or the images have changed; {MANUAL_PROMOTION}"
        )
    if saved.seen is None:
        print(f"warning: the training images of {champion.uri} are unknown: all test images are used", file=sys.stderr)
    seen = np.array([], np.uint64) if saved.seen is None else saved.seen
    unseen = ~np.isin(short_hashes(hashes), seen)
    champion_predictions = {file: predicted[i] for i, file in enumerate(files) if unseen[i]}
    comparison, differences = paired(
        challenger.outcomes, "champion", champion_predictions, task.outcome_scores, params.test.confidence
    )
    seen_images = len(files) - len(champion_predictions)
    return ChampionComparison(champion, comparison, seen_images, int(unknown.sum()), differences)


def predictions_of(folder: Path, champion: Version, params: Params) -> tuple[ModelRecord, list[str], list[str]]:
    """The record of the model in `folder`; its prediction for each test image; and the sha256 of each image's pixels in
    its input. The images are decoded again if its input has another colour, size or `resize` than the new model's."""
    from refit.batches.datamodule import EVALUATION_FACTOR, ImageLoader
    from refit.data.pack import decode_again
    from refit.inference.predictor import predict, read_model
    from refit.training.trainer import inference_trainer

    try:
        system, model = read_model(folder)
    except UserError as error:
        raise UserError(
            f"the champion {champion.uri} cannot be read by this code ({error}); {MANUAL_PROMOTION}"
        ) from None
    info, split, hashes = read_info(), read_split("test"), read_hashes("test")
    if (model.color, list(model.shape), model.resize) != (info.color, info.shape, info.resize):
        pixels = decode_again("test", params.data, model.color, model.shape[1:], model.resize)
        split = Split(pixels, split.labels)
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in split.images]
    images = ImageLoader(split, EVALUATION_FACTOR * model.batch_size)
    task = TASKS[model.task]
    answer = predict(inference_trainer(params.trainer), system, images, model.task)[task.ANSWER].numpy()
    return model, task.predicted(answer, model.classes), hashes


def decide(
    challenger: Challenger,
    versus_champion: ChampionComparison | None,
    promote: PromoteParams,
    not_compared: Version | None = None,
) -> Verdict:
    """Whether the challenger becomes the champion. `versus_champion` is None if there is no champion yet, or one that
    is `not_compared`."""
    champion = versus_champion.champion if versus_champion else not_compared
    stays = f"{champion.uri} stays the champion" if champion else "there is no champion yet"
    score = TASKS[challenger.task].SCORE
    if challenger.score < promote.min_accuracy:
        return Verdict("kept", f"{stays}: the new model's {score} of {challenger.score:.4f} is below "
                               f"promote.min_accuracy = {promote.min_accuracy:g}")  # fmt: skip
    if versus_champion is None:
        replaces = f"it replaces {champion.uri} without a comparison" if champion else "it is the first one"
        return Verdict("promoted", replaces)
    found = versus_champion.comparison
    difference = f"the difference in {score} is {found.difference:+.4f}, with a lower bound of {found.low:+.4f}"
    if found.low < -promote.margin:
        return Verdict("kept", f"{stays}: {difference}, below the {-promote.margin:g} that promote.margin allows")
    return Verdict("promoted", f"it replaces {versus_champion.champion.uri}; {difference}")


def warn_of_doubt(challenger: Challenger, confidence: float) -> None:
    """Warn of a first champion that is no better than the simplest baseline, or that few images have tested."""
    task, images = TASKS[challenger.task], len(challenger.outcomes)
    low, high = challenger.interval(confidence)
    if low <= challenger.baseline:
        print(f"warning: its {task.SCORE} of {challenger.score:.4f} ({low:.4f} to {high:.4f}) is not shown to be "
              f"better than {task.BASELINE[1]}, {challenger.baseline:.4f}; to refuse such a model, raise "
              "promote.min_accuracy", file=sys.stderr)  # fmt: skip
    elif high - low > DOUBTFUL:
        print(f"warning: only {images:,} images have tested it, so its {task.SCORE} is only known to be between "
              f"{low:.4f} and {high:.4f}; add test images, or raise data.test, which leaves fewer for training",
              file=sys.stderr)  # fmt: skip


def as_facts(
    challenger: Challenger, versus_champion: ChampionComparison | None, verdict: Verdict, confidence: float
) -> list[Fact]:
    score = TASKS[challenger.task].SCORE
    low, high = challenger.interval(confidence)
    facts = [
        Fact(
            "new model",
            f"{model_name(challenger.sha256)}, {score} {challenger.score:.4f} (confidence interval {low:.4f} to "
            f"{high:.4f}) on {len(challenger.outcomes):,} images",
        )
    ]
    if versus_champion:
        champion, found, seen, unknown, _ = versus_champion
        left_out = f"; {seen:,} are left out because the champion was trained on them" if seen else ""
        new_classes = f"; {unknown:,} images have classes that it does not know" if unknown else ""
        facts += [
            Fact("champion", f"{champion.uri}, {model_name(champion.sha256)}{new_classes}"),
            Fact(
                score,
                f"new {found.score:.4f}, champion {found.other_score:.4f} on {found.images:,} images{left_out}",
            ),
            Fact(
                "difference",
                f"{found.difference:+.4f} (confidence interval {found.low:+.4f} to {found.high:+.4f}); "
                f"the new model is better on {found.this_better:,} images, the champion on {found.other_better:,}",
            ),
        ]
    return [*facts, Fact(verdict.outcome, verdict.why)]


def write_verdict(
    challenger: Challenger, versus_champion: ChampionComparison | None, verdict: Verdict, facts: list[Fact]
) -> None:
    values: dict[str, Any] = {
        **verdict._asdict(),
        "model": model_name(challenger.sha256),
        "model_sha256": challenger.sha256,
    }
    if versus_champion:
        values |= {
            CHAMPION: versus_champion.champion._asdict(),
            "comparison": asdict(versus_champion.comparison),
            "seen": versus_champion.seen,
        }
        values["unknown"] = versus_champion.unknown
    with whole_folder(PROMOTION) as new:
        write_json(new / "verdict.json", values)
        write_bytes(new / "promotion.md", as_markdown(facts).encode())
        write_csv(new / "differences.csv", versus_champion.differences if versus_champion else [])


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument(WITHOUT_COMPARISON, action="store_true", help="replace the champion without comparing the two")
    run_command(main, parser)
