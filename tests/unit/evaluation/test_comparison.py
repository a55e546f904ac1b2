"""Intervals of a mean score, and of its difference between two models on the same images."""

import numpy as np
import pytest

from refit.evaluation.comparison import compare, mean_interval, paired, wilson_interval
from refit.tasks.classification import outcome_scores


def outcomes(both: int, only_this: int, only_other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    this = np.repeat([True, True, False, False], [both, only_this, only_other, neither])
    rival = np.repeat([True, False, True, False], [both, only_this, only_other, neither])
    return this, rival


def test_the_interval_matches_a_published_example() -> None:
    """Agresti's two surveys of 1,600 people: 944 approved in the first, 880 in the second. Wald's interval is -0.06 to
    -0.02; the interval used here differs little from it for many people."""
    found = compare(*outcomes(794, 86, 150, 570), confidence=0.95)
    assert (found.images, found.this_better, found.other_better) == (1600, 86, 150)
    assert found.difference == pytest.approx((880 - 944) / 1600)
    wald = 1.96 * np.sqrt(86 + 150 - 64**2 / 1600) / 1600
    assert found.low == pytest.approx(found.difference - wald, abs=2e-4)
    assert found.high == pytest.approx(found.difference + wald, abs=2e-4)


@pytest.mark.parametrize(("images", "chances"), [(40, (0.9, 0.05, 0.02, 0.03)), (400, (0.8, 0.05, 0.1, 0.05))])
def test_the_interval_contains_the_true_difference_as_often_as_it_states(
    images: int, chances: tuple[float, ...]
) -> None:
    truth = chances[1] - chances[2]
    draws = np.random.default_rng(0).multinomial(images, chances, size=4000)
    found = [compare(*outcomes(*draw), confidence=0.95) for draw in draws]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.94 < covered < 0.995


@pytest.mark.parametrize(("images", "widest"), [(0, 1.0), (10, 0.17), (1000, 0.002)])
def test_identical_predictions_have_a_narrow_interval_only_with_many_images(images: int, widest: float) -> None:
    found = compare(*outcomes(images, 0, 0, 0), confidence=0.95)
    assert found.difference == 0
    assert 0.9 * widest < found.high == -found.low <= widest


def test_only_common_images_count_and_the_list_has_those_that_exactly_one_got_right() -> None:
    rows = [
        {"file": file, "actual": "cat", "predicted": predicted, "probability": "0.5"}
        for file, predicted in {"a": "cat", "b": "dog", "c": "cat", "d": "dog", "e": "cat"}.items()
    ]
    found, differing = paired(
        rows, "other", {"a": "cat", "b": "cat", "c": "dog", "d": "cow", "x": "cat"}, outcome_scores, 0.95
    )
    assert (found.images, found.this_better, found.other_better) == (4, 1, 1)
    assert differing == [
        {"file": "b", "actual": "cat", "predicted": "dog", "other": "cat"},
        {"file": "c", "actual": "cat", "predicted": "cat", "other": "dog"},
    ]
    assert paired(rows, "other", {}, outcome_scores, 0.95)[0].images == 0


def test_the_interval_stays_within_minus_one_and_one() -> None:
    found = compare(*outcomes(0, 2, 0, 0), confidence=0.99)
    assert found.high == 1
    assert found.low < 0


def test_the_interval_of_8_of_10_is_wilson_s() -> None:
    assert wilson_interval(8, 10, 0.95) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_the_interval_of_a_perfect_score_ends_at_one_but_starts_below() -> None:
    low, high = wilson_interval(360, 360, 0.95)
    assert high == 1.0
    assert low == pytest.approx(360 / (360 + 1.959964**2), abs=1e-6)
    assert wilson_interval(0, 360, 0.95) == pytest.approx((0.0, 1 - low))


@pytest.mark.parametrize("images", [12, 200])
def test_the_intervals_of_fractional_scores_contain_the_truth_as_often_as_they_state(images: int) -> None:
    rng = np.random.default_rng(0)
    scores, other = rng.beta(8, 2, (4000, images)), rng.beta(7, 3, (4000, images))
    means = [mean_interval(one, confidence=0.9) for one in scores]
    assert 0.88 < np.mean([low <= 0.8 <= high for low, high in means]) < 0.93
    found = [compare(*pair, confidence=0.9) for pair in zip(scores, other, strict=True)]
    assert 0.88 < np.mean([one.low <= 0.1 <= one.high for one in found]) < 0.93


def test_fractional_scores_are_compared_by_their_mean_and_by_image() -> None:
    found = compare([0.5, 0.75, 1.0], [0.25, 1.0, 0.25], confidence=0.95)
    assert (found.score, found.other_score, found.this_better, found.other_better) == (0.75, 0.5, 2, 1)
    assert found.low < found.difference == 0.25 < found.high
    single = compare([0.5], [0.25], confidence=0.95)
    assert (single.low, single.high) == (-1, 1)
    assert mean_interval([0.5], confidence=0.95) == (0, 1)


def test_the_interval_of_right_and_wrong_answers_is_wilson_s() -> None:
    assert mean_interval([True] * 8 + [False] * 2, 0.95) == wilson_interval(8, 10, 0.95)
