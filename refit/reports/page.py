"""The report of a run: a single HTML file that needs no network, no script and no other file."""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from refit.artifacts.files import write_bytes
from refit.evaluation.classification import ClassificationReport
from refit.params.dotted import as_yaml, flatten
from refit.reports.plots import DPI, percent

Facts = Mapping[str, object]
UNDEFINED = "\N{EN DASH}"


@dataclass(frozen=True)
class Pictures:
    """PNG files as bytes, from refit.reports.plots."""

    learning_rate: bytes
    training: bytes
    confusion: bytes
    reliability: bytes
    curves: bytes
    mistakes: bytes


def write_report(
    path: Path,
    report: ClassificationReport,
    model_sha256: str,
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

    data, tuning, training: a name and a value per line. mistakes: a row for each image in the gallery of mistakes; all
    rows have the same keys, which become the table's header. embeddings: PNG files by name, empty for a classifier.
    params: sections of keys and values, as in params.yaml. debug: whether to mark the page as that of a debug run.
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
        data=data,
        tuning=tuning,
        training=training,
        classes=sorted((asdict(row) for row in report.classes), key=_worst_first),
        mistakes=mistakes,
        params=[(key, as_yaml(value)) for key, value in flatten(params).items()],
        pictures={name: _inlined(png) for name, png in {**vars(pictures), **embeddings}.items()},
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
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ "Debug run: " if debug }}{{ report.accuracy | percent }} accuracy on \
{{ "{:,}".format(report.images) }} test images</title>
<style>
  :root { --ink: #222; --quiet: #666; --line: #ddd; --page: #fff; --card: #f5f6f8; --bar: #8cc3e3; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6e6e6; --quiet: #a5a5a5; --line: #3a3d42; --page: #16181b; --card: #202327; --bar: #1d5a80; }
  }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
         font: 16px/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
  h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
  p { margin: .4rem 0; max-width: 46rem; }
  .quiet, caption, figcaption { color: var(--quiet); }
  nav { margin: .8rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
  a { color: inherit; text-underline-offset: .2em; }
  code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
  .headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem;
              margin: 1.3rem 0; }
  .headline div { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
  .headline dt { color: var(--quiet); font-size: .9rem; }
  .headline dd { margin: 0; font-size: 1.55rem; font-weight: 650; font-variant-numeric: tabular-nums; }
  .headline dd.quiet { font-size: .8rem; font-weight: 400; line-height: 1.35; }
  .facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1.5rem; margin: .6rem 0; }
  .facts dt { color: var(--quiet); }
  .facts dd { margin: 0; overflow-wrap: anywhere; }
  .debug { background: var(--bar); border-radius: .5rem; padding: .5rem .9rem; }
  figure { margin: 1rem 0; }
  img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .5rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
  th, td { padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line);
           text-align: right; vertical-align: top; }
  th:first-child, td:first-child, .text td, .text th { text-align: left; overflow-wrap: anywhere; }
  thead th { color: var(--quiet); font-weight: 500; }
  tbody th { font-weight: 500; }
  .bar { background: linear-gradient(var(--bar) 0 0) no-repeat 0 100% / var(--share) 3px; min-width: 8rem; }
  @media print {
    body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; }
    figure, tr, .headline div { break-inside: avoid; } h2 { break-after: avoid; } img { max-height: 16cm; width: auto; }
  }
</style>
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
  <a href="#data">Data</a> <a href="#tuning">Tuning</a> <a href="#training">Training</a>
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

<h2 id="data">Data</h2>
{{ facts(data) }}

<h2 id="tuning">Tuning</h2>
{{ facts(tuning) }}
{{ picture("learning_rate", "Training loss by learning rate") }}

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
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(
        number=_number, percent=percent, metric=lambda value: UNDEFINED if value is None else f"{value:.3f}"
    )
    return page.from_string(_HTML)
