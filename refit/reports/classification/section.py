"""A classifier's part of the report: confusion, classes, calibration, curves and mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from refit.evaluation.classification.report import ClassificationReport
from refit.evaluation.tested import Evaluation, Tested
from refit.reports.classification import plots
from refit.reports.embeddings import embedding_pictures
from refit.reports.page import Facts, Section, number
from refit.reports.style import percent


def classifier_section(
    tested: Tested, evaluation: Evaluation[ClassificationReport], outcomes: Sequence[Mapping[str, Any]]
) -> Section:
    """With a map of the embeddings and reconstructed images, if the system has them."""
    worst = evaluation.worst
    return section_of(
        evaluation.report,
        evaluation.baselines,
        [outcomes[index] for index in worst],
        tested.split.images[worst],
        embedding_pictures(tested.system, tested.others, tested.split, tested.model.classes),
    )


def section_of(
    report: ClassificationReport,
    baselines: Mapping[str, float],
    mistakes: Sequence[Mapping[str, Any]],
    images: npt.NDArray[np.uint8],
    embeddings: Mapping[str, bytes],
) -> Section:
    """mistakes: the rows of outcomes.csv for the most confident mistakes; all have the same keys, which become the
    table's header. images: theirs, uint8 (M, C, H, W). embeddings: PNG files by name, empty for a plain classifier."""
    pictures = {
        "confusion": plots.confusion_matrix(report),
        "reliability": plots.reliability_diagram(report),
        "curves": plots.roc_and_precision_recall(report),
        "mistakes": plots.mistakes_gallery(
            images,
            [row["actual"] for row in mistakes],
            [row["predicted"] for row in mistakes],
            [row["probability"] for row in mistakes],
            report.mistakes,
            report.images,
        ),
    }
    return Section(
        title=f"{percent(report.accuracy)} accuracy on {report.images:,} test images",
        cards=_cards(report),
        blocks=_BLOCKS,
        values={
            "baselines": baselines,
            "classes": sorted((asdict(row) for row in report.classes), key=_worst_first),
            "embeddings": sorted(embeddings),
            "mistakes": mistakes,
        },
        pictures=pictures | dict(embeddings),
    )


def _cards(report: ClassificationReport) -> list[tuple[str, str, str]]:
    return [
        ("Accuracy", percent(report.accuracy), f"{report.confidence * 100:g} % interval: "
            f"{percent(report.accuracy_low)} to {percent(report.accuracy_high)}"),
        ("Macro F1", number(report.macro_f1), "mean F1 of the classes; 1 is best"),
        ("Loss", number(report.loss), "nats per image; 0 is best"),
        ("Calibration error", number(report.ece), "mean gap between confidence and accuracy (ECE)"),
        ("Brier score", number(report.brier), "squared error of the probabilities, 0 to 2; 0 is best"),
    ]  # fmt: skip


def _worst_first(row: Facts) -> tuple[bool, object]:
    return row["f1"] is None, row["f1"]


_BLOCKS = """\
{% block links %}
  <a href="#confusion">Confusion</a> <a href="#classes">Classes</a> <a href="#calibration">Calibration</a>
  <a href="#curves">Curves</a>{% if embeddings %} <a href="#embeddings">Embeddings</a>{% endif %}
  <a href="#mistakes">Mistakes</a>{% endblock %}

{% block comparison %}
<p class="quiet">For comparison, on the same images: always the largest class {{ baselines.majority | percent }}, the
vote of the nearest training images, shrunk to 8 x 8 pixels, {{ baselines.neighbours | percent }}.</p>
{% endblock %}

{% block results %}
<h2 id="confusion">Confusion</h2>
{{ picture("confusion", "Test images by true and predicted class") }}

<h2 id="classes">Classes</h2>
<p class="quiet">Sorted by F1, lowest first. A dash means that the test images do not define the metric.</p>
<div class="scroll"><table>
<thead><tr><th>class</th><th>F1</th><th>precision</th><th>recall</th><th>ROC AUC</th><th>average precision</th>
<th>images</th></tr></thead>
<tbody>
{% for row in classes %}
<tr><th>{{ row.name }}</th><td class="bar" style="--share: {{ "%.1f" | format((row.f1 or 0) * 100) }}%">\
{{ row.f1 | metric }}</td><td>{{ row.precision | metric }}</td><td>{{ row.recall | metric }}</td>\
<td>{{ row.roc_auc | metric }}</td><td>{{ row.average_precision | metric }}</td><td>{{ row.images | number }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2 id="calibration">Calibration</h2>
{{ picture("reliability", "Accuracy by confidence, and the number of images at each confidence") }}
<p class="quiet">A perfectly calibrated model is correct on 80 % of the images that it classifies with 80 % confidence:
its bars end at the dashed line.</p>

<h2 id="curves">Each class against the rest</h2>
{{ picture("curves", "ROC and precision-recall curves: the mean of the classes, and the range from worst to best") }}

{% if embeddings %}
<h2 id="embeddings">Embeddings</h2>
{% for name in embeddings %}
{{ picture(name, name.replace("_", " ")) }}
{% endfor %}
{% endif %}

<h2 id="mistakes">Mistakes</h2>
{{ picture("mistakes", "The most confident mistakes") }}
{% if mistakes %}
<div class="scroll"><table class="text">
<thead><tr>{% for key in mistakes[0] %}<th>{{ key }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in mistakes %}
<tr>{% for value in row.values() %}<td>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% endblock %}
"""
