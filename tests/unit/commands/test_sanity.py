"""The images that `make sanity` trains on."""

import numpy as np

from refit.commands import sanity


def test_the_subset_alternates_between_all_classes() -> None:
    labels = np.array([2, 0, 0, 0, 1, 1, 0, 2])
    rows = sanity.balanced_subset(labels, 5)
    assert sorted(labels[rows][:3]) == [0, 1, 2]
    assert sorted(rows[3:].tolist()) == [2, 5]
    assert sorted(sanity.balanced_subset(labels, 100).tolist()) == list(range(8))
