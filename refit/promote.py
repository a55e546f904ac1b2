"""May the model that was just tested become the champion? If so it does: `python -m refit.promote`.

It may where promote.min_accuracy and promote.margin allow it: compared with the champion in use on the same test
images, none of which either was trained on. The first champion has no rival.
"""

import csv
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np

from refit.command import run_command, take_no_arguments
from refit.files import read_json, whole_folder, write_bytes, write_csv, write_json
from refit.params import Params, PromoteParams, load_params
from refit.registry import CHAMPION, Version, fetch_artifact, find_champion, make_champion, register, short_hashes
from refit.reports.comparison import Comparison, Row, paired
from refit.summary import Fact, as_lines, as_markdown
from refit.tracking import EXPERIMENT, log_to_model_run, model_name, model_sha256

MODEL, EVALUATION = Path("data/model"), Path("data/evaluation")
PROMOTION = Path("data/promotion")
"""verdict.json, promotion.md and differences.csv: what was decided last, and why."""


class Challenger(NamedTuple):
    """The model that was just tested."""

    sha256: str
    accuracy: float
    outcomes: list[Row]
    """Of each test image: outcomes.csv."""


class Rivalry(NamedTuple):
    """The challenger beside the champion."""

    champion: Version
    comparison: Comparison
    seen: int
    """Test images that the champion was trained on or chosen by, and that are left out."""
    differences: list[Row]
    """The images that one of the two has right."""


class Verdict(NamedTuple):
    outcome: Literal["promoted", "kept", "unchanged"]
    """unchanged: it is the champion already."""
    why: str


def main() -> None:
    params, challenger = load_params(), read_challenger()
    champion, rivalry = find_champion(EXPERIMENT), None
    if champion is None:
        verdict = decide(challenger, None, params.promote)
    elif champion.sha256 == challenger.sha256:
        verdict = Verdict("unchanged", f"{champion.uri} is this very model")
    else:
        rivalry = face(champion, challenger, params)
        verdict = decide(challenger, rivalry, params.promote)
    if verdict.outcome == "promoted":
        version, _ = register(MODEL, EXPERIMENT)
        verdict = Verdict("promoted", f"{version.uri} is the champion, {verdict.why}")
        make_champion(version, verdict.why)

    facts = as_facts(challenger, rivalry, verdict)
    write_verdict(challenger, rivalry, verdict, facts)
    if rivalry:
        gain = {"accuracy_beside_champion": rivalry.comparison.difference}
        log_to_model_run(challenger.sha256, gain, sorted(PROMOTION.iterdir()))
    print("\n".join(["Promotion", *as_lines(facts)]))


def read_challenger() -> Challenger:
    """Raises ValueError where the model in data/model was not tested, or by a debug run."""
    sha256, test = model_sha256(MODEL), read_json(EVALUATION / "test.json", "dvc repro")
    model = model_name(sha256)
    if test.get("tested") != model:
        raise ValueError(f"model {model} has not been tested; run: dvc repro")
    if test.get("debug"):
        raise ValueError(
            f"the test of model {model} is a debug run; take the debug section of params.yaml back to what it "
            "was, and run: dvc repro"
        )
    with (EVALUATION / "outcomes.csv").open(encoding="utf-8", newline="") as file:
        return Challenger(sha256, float(test["accuracy"]), list(csv.DictReader(file)))


def face(champion: Version, challenger: Challenger, params: Params) -> Rivalry:
    """Compare both on the test images that the champion was not trained on. Raises ValueError where that cannot be."""
    with TemporaryDirectory() as folder:
        model, seen = fetch_artifact(champion, Path(folder))
        predicted, hashes = predictions_of(model, champion, params)
    if len(predicted) != len(challenger.outcomes):
        raise ValueError("data/evaluation/outcomes.csv is of other test images than data/prepared; run: dvc repro")
    if seen is None:
        print(f"warning: which images {champion.uri} was trained on is not known: all test images count",
              file=sys.stderr)  # fmt: skip
        seen = np.array([], dtype=np.uint64)
    fair = ~np.isin(short_hashes(hashes), seen)
    files = [row["file"] for row in challenger.outcomes]
    theirs = {file: predicted[i] for i, file in enumerate(files) if fair[i]}
    comparison, differences = paired(challenger.outcomes, "champion", theirs, params.test.confidence)
    return Rivalry(champion, comparison, len(files) - len(theirs), differences)


def predictions_of(folder: Path, champion: Version, params: Params) -> tuple[list[str], list[str]]:
    """The class that the model in `folder` takes each test image for, and the sha256 of that image's pixels as it sees
    them: where they are not as the new model sees them, they are decoded once more."""
    from refit.data.module import EVALUATION_FACTOR, EvaluationLoader
    from refit.data.pack import decode_again
    from refit.data.prepared import Split, read_hashes, read_info, read_split
    from refit.model_file import read_model
    from refit.reports.classification import predictions
    from refit.training.outputs import predict_each

    try:
        system, model = read_model(folder)
    except ValueError as error:
        raise ValueError(
            f"the champion {champion.uri} cannot be read by this code ({error}); compare them by hand, then: "
            "make register, and give its version the alias champion in MLflow"
        ) from None
    info, split, hashes = read_info(), read_split("test"), read_hashes("test")
    if (model.color, list(model.shape)) != (info.color, info.shape):
        split = Split(decode_again("test", params.data, model.color, model.shape[1:]), split.labels)
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in split.images]
    loader = EvaluationLoader(split, EVALUATION_FACTOR * model.batch_size)
    outputs = predict_each(system, loader, params.trainer, params.debug).gather()
    return [model.classes[best] for best in predictions(outputs["probabilities"].numpy())], hashes


def decide(challenger: Challenger, rivalry: Rivalry | None, promote: PromoteParams) -> Verdict:
    """Whether the challenger may become the champion; without a rival where there is none yet."""
    stays = f"{rivalry.champion.uri} stays the champion" if rivalry else "there is no champion yet"
    if challenger.accuracy < promote.min_accuracy:
        return Verdict("kept", f"{stays}: the new model's accuracy of {challenger.accuracy:.4f} is below "
                               f"promote.min_accuracy = {promote.min_accuracy:g}")  # fmt: skip
    if rivalry is None:
        return Verdict("promoted", "the first")
    of = rivalry.comparison
    beside = f"the new model's accuracy beside its own is {of.difference:+.4f}, at worst {of.low:+.4f}"
    if of.low < -promote.margin:
        return Verdict("kept", f"{stays}: {beside}, and promote.margin allows {-promote.margin:g}")
    return Verdict("promoted", f"after {rivalry.champion.uri}: {beside}")


def as_facts(challenger: Challenger, rivalry: Rivalry | None, verdict: Verdict) -> list[Fact]:
    images = len(challenger.outcomes)
    facts = [
        Fact("new model", f"{model_name(challenger.sha256)}, accuracy {challenger.accuracy:.4f} on {images:,} images")
    ]
    if rivalry:
        champion, of, seen, _ = rivalry
        left_out = f"; {seen:,} are left out, on which the champion was trained" if seen else ""
        facts += [
            Fact("champion", f"{champion.uri}, {model_name(champion.sha256)}"),
            Fact("compared", f"{of.accuracy:.4f} with {of.rival_accuracy:.4f} on {of.images:,} images{left_out}"),
            Fact(
                "difference",
                f"{of.difference:+.4f} (confidence interval {of.low:+.4f} to {of.high:+.4f}); "
                f"right by the new model alone {of.only_this:,}, by the champion alone {of.only_rival:,}",
            ),
        ]
    return [*facts, Fact(verdict.outcome, verdict.why)]


def write_verdict(challenger: Challenger, rivalry: Rivalry | None, verdict: Verdict, facts: list[Fact]) -> None:
    values: dict[str, Any] = {
        **verdict._asdict(),
        "model": model_name(challenger.sha256),
        "model_sha256": challenger.sha256,
    }
    if rivalry:
        values |= {CHAMPION: rivalry.champion._asdict(), "comparison": asdict(rivalry.comparison), "seen": rivalry.seen}
    with whole_folder(PROMOTION) as new:
        write_json(new / "verdict.json", values)
        write_bytes(new / "promotion.md", as_markdown(facts).encode())
        write_csv(new / "differences.csv", rivalry.differences if rivalry else [])


if __name__ == "__main__":
    take_no_arguments()
    run_command(lambda _: main())
