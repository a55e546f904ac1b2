"""Rules that hold between sections of params.yaml."""

import pytest

from refit.params import check_params
from refit.runtime.errors import UserError
from tests.fixtures import Changed, Values


def test_swa_and_early_stopping_are_refused_together(values: Values) -> None:
    with pytest.raises(UserError, match="patience = 3 could end the fit before averaging = 'swa' begins"):
        check_params(values({"fit.averaging": "swa", "fit.patience": 3}))


def test_swa_that_begins_while_layers_are_frozen_is_refused(values: Values) -> None:
    keys = {"fit.averaging": "swa", "fit.swa_start": 0.5, "fit.max_epochs": 4}
    check_params(values(keys | {"fit.freeze_epochs": 2}))
    with pytest.raises(UserError, match="freeze_epochs = 3, but averaging = 'swa' begins after 2 epochs"):
        check_params(values(keys | {"fit.freeze_epochs": 3}))
    with pytest.raises(UserError, match=r"freeze_share = 0\.3, but averaging = 'swa' would recompute the statistics"):
        check_params(values(keys | {"fit.freeze_share": 0.3}))


@pytest.mark.parametrize(
    "key", ["fast_dev_run", "overfit_batches", "limit_train_batches", "limit_val_batches", "limit_test_batches"]
)
def test_every_setting_that_shortens_a_fit_or_a_test_makes_a_debug_run(key: str, changed: Changed) -> None:
    assert changed({f"debug.{key}": 1}).debug.shortens
    assert not changed({}).debug.shortens


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"data.image_size": 64}, "augment.train_size = 96 is larger than data.image_size = 64; lower it, or set"),
        ({"model.network": "mlp"}, "train_size = 96 does not work with model.network = mlp, whose input has one fixed"),
        ({"model.system": "autoencoder"}, "does not work with model.system = autoencoder, whose output has one fixed"),
    ],
)
def test_a_size_to_train_at_that_cannot_work_is_refused(keys: dict[str, object], line: str, values: Values) -> None:
    check_params(values({"model.network": "cnn", "augment.train_size": 96, "data.image_size": 96}))
    with pytest.raises(UserError, match=line):
        check_params(values({"model.network": "cnn", "augment.train_size": 96} | keys))
