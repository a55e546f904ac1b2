"""The rule for promoting a model to champion."""

import pytest

from refit.commands.promote import Challenger, ChampionComparison, decide, warn_of_doubt
from refit.evaluation.comparison import Comparison
from refit.tracking.registry import Version
from tests.fixtures import Changed

RIVAL = Version("refit", "7", "c" * 64, "run", was_champion=True)


def challenger_of(accuracy: float, images: int = 100, baseline: float = 0.1) -> Challenger:
    right = round(accuracy * images)
    outcomes = [{"actual": "cat", "predicted": "cat" if number < right else "dog"} for number in range(images)]
    return Challenger("a" * 64, "b" * 64, "classification", accuracy, outcomes, baseline)


@pytest.mark.parametrize(
    ("accuracy", "low", "keys", "outcome", "why"),
    [
        (0.5, None, {}, "promoted", "it is the first one"),
        (0.5, None, {"min_accuracy": 0.6}, "kept", "there is no champion yet: the new model's accuracy of 0.5000 is"),
        (0.9, -0.01, {"margin": 0.01}, "promoted", "it replaces models:/refit/7; the difference in accuracy is"),
        (
            0.9,
            -0.0101,
            {"margin": 0.01},
            "kept",
            "bound of -0.0101, below the -0.01 that promote.margin allows",
        ),
        (0.9, 0.001, {"margin": 0.0}, "promoted", "a lower bound of +0.0010"),
        (0.9, 0.05, {"min_accuracy": 0.95}, "kept", "models:/refit/7 stays the champion: the new model's accuracy of"),
    ],
)
def test_a_model_is_promoted_by_its_accuracy_and_the_lower_bound_of_the_difference(
    accuracy: float, low: float | None, keys: dict[str, float], outcome: str, why: str, changed: Changed
) -> None:
    rules = changed({f"promote.{name}": value for name, value in keys.items()}).promote
    versus_champion = (
        None if low is None else ChampionComparison(RIVAL, Comparison(100, 0.9, 0.88, 5, 3, low, 0.1), 0, 0, [])
    )
    found = decide(challenger_of(accuracy), versus_champion, rules)
    assert found.outcome == outcome
    assert why in found.why


@pytest.mark.parametrize(
    ("accuracy", "images", "majority", "warning"),
    [
        (0.387, 372, 0.36, "accuracy of 0.3870 (0.3390 to 0.4375) is not shown to be better than always answering"),
        (1.0, 8, 0.5, "only 8 images have tested it, so its accuracy is only known to be between 0.6756 and 1.0000"),
        (0.98, 359, 0.1, ""),
    ],
)
def test_a_first_champion_of_doubtful_accuracy_gets_a_warning(
    accuracy: float, images: int, majority: float, warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_doubt(challenger_of(accuracy, images, majority), confidence=0.95)
    said = capsys.readouterr().err
    assert warning in said
    assert bool(said) == bool(warning)


def test_without_a_comparison_only_min_accuracy_counts(changed: Changed) -> None:
    challenger = challenger_of(0.5)
    found = decide(challenger, None, changed({"promote.min_accuracy": 0.5}).promote, RIVAL)
    assert found == ("promoted", "it replaces models:/refit/7 without a comparison")
    found = decide(challenger, None, changed({"promote.min_accuracy": 0.6}).promote, RIVAL)
    assert found.outcome == "kept"
    assert found.why.startswith("models:/refit/7 stays the champion: ")
