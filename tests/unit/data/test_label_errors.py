"""Label errors: an image is judged by a model that saw neither it nor its near-duplicates."""

import numpy as np

from refit.data.label_errors import find_label_errors, out_of_sample


def clusters(each: int = 40, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 8) around a corner per class, and labels (N,)."""
    random, labels = np.random.default_rng(seed), np.repeat(np.arange(classes), each)
    return (np.eye(8)[labels] * 4 + random.normal(size=(len(labels), 8))).astype(np.float32), labels


def test_changed_labels_come_first_with_the_true_class_as_the_suggestion() -> None:
    features, labels = clusters()
    changed = labels.copy()
    wrong = np.array([3, 17, 45, 60, 90, 110])
    changed[wrong] = (labels[wrong] + 1) % 3
    suspects = find_label_errors(features, changed, np.arange(len(labels)), seed=0)
    assert {suspect.position for suspect in suspects[: len(wrong)]} == set(wrong)
    assert all(suspect.suggested == labels[suspect.position] for suspect in suspects[: len(wrong)])
    assert [suspect.score for suspect in suspects] == sorted(suspect.score for suspect in suspects)


def test_right_labels_of_classes_far_apart_are_no_suspects() -> None:
    features, labels = clusters()
    assert find_label_errors(features * 3, labels, np.arange(len(labels)), seed=0) == []


def test_near_duplicates_do_not_vouch_for_each_other_s_labels() -> None:
    """Each wrong image has ten near-duplicates with the same wrong label, which would hide it."""
    features, labels = clusters()
    features[0, 7] = 8  # what only they have in common
    features = np.concatenate([features, np.repeat(features[:1], 10, axis=0)])
    labels = np.concatenate([labels, np.full(10, 1)])
    labels[0] = 1
    groups = np.concatenate([np.arange(120), np.zeros(10, np.int64)])
    found = {suspect.position for suspect in find_label_errors(features, labels, groups, seed=0)}
    assert {0, *range(120, 130)} <= found
    alone = {suspect.position for suspect in find_label_errors(features, labels, np.arange(130), seed=0)}
    assert not {0, *range(120, 130)} & alone


def test_the_only_image_of_a_class_is_not_judged() -> None:
    features, labels = clusters()
    features, labels = np.concatenate([features, features[:1]]), np.append(labels, 3)
    probabilities, judged = out_of_sample(features, labels, np.arange(121), seed=0)
    assert not judged[120]
    assert judged[:120].all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert 120 not in {suspect.position for suspect in find_label_errors(features, labels, np.arange(121), seed=0)}


def test_too_few_images_for_two_folds_have_no_suspects() -> None:
    assert find_label_errors(np.eye(2, dtype=np.float32), np.array([0, 1]), np.arange(2), seed=0) == []
    assert find_label_errors(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]), np.zeros(4, np.int64), seed=0) == []
