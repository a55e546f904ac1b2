"""The report of a run: a single HTML file that needs no network, no script and no other file."""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Template

from refit.artifacts.files import write_bytes
from refit.evaluation.classification import ClassificationReport
from refit.evaluation.findings import Finding
from refit.params.dotted import as_in_yaml, flatten
from refit.reports.plots import DPI
from refit.reports.style import page_template, percent

Facts = Mapping[str, object]
UNDEFINED = "\N{EN DASH}"


@dataclass(frozen=True)
class Pictures:
    """PNG files as bytes, from refit.reports.plots."""

    learning_rate: bytes | None
    """None if no range test was run."""
    frozen_learning_rate: bytes | None
    """Of the frozen epochs; None without a range test of theirs."""
    training: bytes
    confusion: bytes
    reliability: bytes
    curves: bytes
    mistakes: bytes


def write_report(
    path: Path,
    report: ClassificationReport,
    model_sha256: str,
    baselines: Mapping[str, float],
    findings: Sequence[Finding],
    data: Facts,
    tuning: Facts,
    training: Facts,
    mistakes: Sequence[Facts],
    params: Mapping[str, object],
    pictures: Pictures,
    embeddings: Mapping[str, bytes],
    *,
    debug: bool,
) -> None:
    """Write the page. The same arguments give the same bytes.

    baselines: accuracies of simple methods by name. data, tuning, training: a name and a value per line. mistakes: a
    row for each image in the gallery of mistakes; all rows have the same keys, which become the table's header.
    embeddings: PNG files by name, empty for a classifier. params: sections of keys and values, as in params.yaml.
    debug: whether to mark the page as that of a debug run.
    Names and values are escaped, so they cannot contain HTML.
    """
    html = _template().render(
        report=report,
        headline=[
            ("Accuracy", percent(report.accuracy), f"{report.confidence * 100:g} % interval: "
                f"{percent(report.accuracy_low)} to {percent(report.accuracy_high)}"),
            ("Macro F1", _number(report.macro_f1), "mean F1 of the classes; 1 is best"),
            ("Loss", _number(report.loss), "nats per image; 0 is best"),
            ("Calibration error", _number(report.ece), "mean gap between confidence and accuracy (ECE)"),
            ("Brier score", _number(report.brier), "squared error of the probabilities, 0 to 2; 0 is best"),
        ],
        model_sha256=model_sha256,
        baselines=baselines,
        findings=findings,
        data=data,
        tuning=tuning,
        training=training,
        classes=sorted((asdict(row) for row in report.classes), key=_worst_first),
        mistakes=mistakes,
        params=[(key, as_in_yaml(value)) for key, value in flatten(params).items()],
        pictures={name: _inlined(png) for name, png in {**vars(pictures), **embeddings}.items() if png},
        embeddings=sorted(embeddings),
        debug=debug,
    )  # fmt: skip
    write_bytes(path, html.encode())


def _worst_first(row: Mapping[str, object]) -> tuple[bool, object]:
    return row["f1"] is None, row["f1"]


def _number(value: object) -> str:
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_number(part) for part in value)
    return str(value)


def _inlined(png: bytes) -> dict[str, object]:
    """The picture as a data URL, with its width in CSS pixels, at which text has its nominal size."""
    (pixels,) = struct.unpack(">I", png[16:20])
    return {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}", "width": pixels * 96 // DPI}


_HTML = """\
<title>{{ "Debug run: " if debug }}{{ report.accuracy | percent }} accuracy on \
{{ "{:,}".format(report.images) }} test images</title>
<style>
{{ style | safe }}</style>
</head>
<body>
{% macro facts(rows) %}
<dl class="facts">
  {% for name, value in rows.items() %}
  <dt>{{ name }}</dt><dd>{{ value | number }}</dd>
  {% endfor %}
</dl>
{% endmacro %}
{% macro picture(name, alt) %}
<figure><img src="{{ pictures[name].url }}" width="{{ pictures[name].width }}" alt="{{ alt }}"></figure>
{% endmacro %}
<header>
{% if debug %}
<p class="debug">A debug run: the debug section of params.yaml shortened it. The metrics below are not those of a fully
trained model.</p>
{% endif %}
<h1>{{ report.accuracy | percent }} accuracy on {{ "{:,}".format(report.images) }} test images</h1>
<p class="quiet">Model <code>{{ model_sha256 }}</code></p>
<nav>
  <a href="#advice">Advice</a> <a href="#data">Data</a> <a href="#tuning">Tuning</a> <a href="#training">Training</a>
  <a href="#confusion">Confusion</a> <a href="#classes">Classes</a> <a href="#calibration">Calibration</a>
  <a href="#curves">Curves</a>{% if embeddings %} <a href="#embeddings">Embeddings</a>{% endif %}
  <a href="#mistakes">Mistakes</a> <a href="#parameters">Parameters</a>
</nav>
</header>
<main>
<dl class="headline">
  {% for name, value, note in headline %}
  <div><dt>{{ name }}</dt><dd>{{ value }}</dd><dd class="quiet">{{ note }}</dd></div>
  {% endfor %}
</dl>

<p class="quiet">For comparison, on the same images: always the largest class {{ baselines.majority | percent }}, the
vote of the nearest training images, shrunk to 8 x 8 pixels, {{ baselines.neighbours | percent }}.</p>

<h2 id="advice">Advice</h2>
{% if findings %}
<ul class="advice">
{% for finding in findings %}
<li>{{ finding.what }}.<br><span class="quiet">What may help: {{ finding.remedy }}.</span></li>
{% endfor %}
</ul>
{% else %}
<p class="quiet">None: no check of this run found a problem.</p>
{% endif %}

<h2 id="data">Data</h2>
{{ facts(data) }}

<h2 id="tuning">Tuning</h2>
{{ facts(tuning) }}
{% if "learning_rate" in pictures %}
{{ picture("learning_rate", "Training loss by learning rate") }}
{% endif %}
{% if "frozen_learning_rate" in pictures %}
{{ picture("frozen_learning_rate", "Training loss by learning rate, of the frozen epochs") }}
{% endif %}

<h2 id="training">Training</h2>
{{ facts(training) }}
{{ picture("training", "Loss, accuracy and learning rate by epoch") }}
<p class="quiet">The training loss includes the effects of augmentation, label smoothing and dropout, where they are
enabled. The validation loss does not, so it can be lower.</p>

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

<h2 id="parameters">Parameters</h2>
<div class="scroll"><table class="text"><tbody>
{% for key, value in params %}
<tr><td><code>{{ key }}</code></td><td><code>{{ value }}</code></td></tr>
{% endfor %}
</tbody></table></div>
</main>
</body>
</html>
"""


def _template() -> Template:
    return page_template(_HTML, number=_number, metric=lambda value: UNDEFINED if value is None else f"{value:.3f}")
