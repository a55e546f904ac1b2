"""Sections `test`, `predict` and `promote`: what is done with a trained model."""

from typing import Annotated

from pydantic import Field

from refit.params.types import NOT_BOOL, Count, Fraction, Section, real


class TestParams(Section):
    __test__ = False  # pytest would take a class of this name for a test
    confidence: Annotated[float, real(gt=0.5, lt=1), NOT_BOOL] = 0.95
    """Confidence level of the intervals of the test accuracy."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Number of equally wide confidence bins of the reliability diagram and the expected calibration error."""
    worst_mistakes: Annotated[int, Field(ge=0, le=100)] = 24
    """Number of the most confident mistakes that the gallery shows."""


class PredictParams(Section):
    images: Annotated[str, Field(min_length=1)] = "data/new"
    """New images: a folder, searched with all its subfolders, or an archive or a table as for data.source, which needs
    no labels. If it has no images, the test split is predicted."""
    top_k: Count = 3
    """Number of most probable classes in each row."""
    abstain_below: Fraction = 0.5
    """Mark a prediction as abstained if its probability is lower than this. Only a value above 1 / classes has an
    effect: with two classes, above 0.5."""


class PromoteParams(Section):
    min_accuracy: Fraction = 0.0
    """Lowest test accuracy with which a model may become the champion, even the first one."""
    margin: Fraction = 0.01
    """Largest loss of accuracy that is accepted: a new model becomes the champion if the lower end of the confidence
    interval (test.confidence) of its difference in accuracy is above minus this. Only test images count that neither
    model was trained on."""
