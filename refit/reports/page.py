"""The report of a run: a single HTML file that needs no network, no script and no other file."""

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refit.artifacts.files import write_bytes
from refit.evaluation.tested import Finding
from refit.params.dotted import as_in_yaml, flatten
from refit.reports.plots import DPI
from refit.reports.style import page_template

Facts = Mapping[str, object]
UNDEFINED = "\N{EN DASH}"


@dataclass(frozen=True)
class Section:
    """What a task adds to the page."""

    title: str
    """The result in one line, which is the title of the page."""
    cards: Sequence[tuple[str, str, str]]
    """The headline metrics: the name, the value and a note of each."""
    blocks: str
    """A template that fills the page's blocks: `comparison`, a paragraph on simple methods; `links` to the task's own
    headings; and `results`, these headings with their content. It can use the page's macros and filters."""
    values: Facts
    """The variables of `blocks`."""
    pictures: Mapping[str, bytes]
    """PNG files by name."""


def write_report(
    path: Path,
    section: Section,
    model_sha256: str,
    findings: Sequence[Finding],
    data: Facts,
    tuning: Facts,
    training: Facts,
    params: Mapping[str, object],
    pictures: Mapping[str, bytes],
    *,
    debug: bool,
) -> None:
    """Write the page. The same arguments give the same bytes.

    data, tuning, training: a name and a value per line. params: sections of keys and values, as in params.yaml.
    pictures: PNG files, `training` and, of the range tests that were run, `learning_rate` and `frozen_learning_rate`.
    debug: whether to mark the page as that of a debug run. Names and values are escaped, so they cannot contain HTML.
    """
    html = page_template(_HTML, section.blocks, number=number, metric=metric).render(
        section=section,
        model_sha256=model_sha256,
        findings=findings,
        data=data,
        tuning=tuning,
        training=training,
        params=[(key, as_in_yaml(value)) for key, value in flatten(params).items()],
        pictures={name: _inlined(png) for name, png in {**pictures, **section.pictures}.items()},
        debug=debug,
        **section.values,
    )
    write_bytes(path, html.encode())


def number(value: object) -> str:
    """A value of any type, for a person."""
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(part) for part in value)
    return str(value)


def metric(value: float | None) -> str:
    """A metric with three decimals; a dash if the test images do not define it."""
    return UNDEFINED if value is None else f"{value:.3f}"


def _inlined(png: bytes) -> dict[str, object]:
    """The picture as a data URL, with its width in CSS pixels, at which text has its nominal size."""
    (pixels,) = struct.unpack(">I", png[16:20])
    return {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}", "width": pixels * 96 // DPI}


_HTML = """\
<title>{{ "Debug run: " if debug }}{{ section.title }}</title>
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
<h1>{{ section.title }}</h1>
<p class="quiet">Model <code>{{ model_sha256 }}</code></p>
<nav>
  <a href="#advice">Advice</a> <a href="#data">Data</a> <a href="#tuning">Tuning</a> <a href="#training">Training</a>
{% block links %}{% endblock %} <a href="#parameters">Parameters</a>
</nav>
</header>
<main>
<dl class="headline">
  {% for name, value, note in section.cards %}
  <div><dt>{{ name }}</dt><dd>{{ value }}</dd><dd class="quiet">{{ note }}</dd></div>
  {% endfor %}
</dl>

{% block comparison %}
{% endblock %}

<h2 id="advice">Advice</h2>
{% if findings %}
<ul class="advice">
{% for finding in findings %}
<li>{{ finding.what }}.<br><span class="quiet">What may help: \
{% for part in finding.remedy.split("`") %}
{% if loop.index is even %}<code>{{ part }}</code>{% else %}{{ part }}{% endif %}
{% endfor %}
.</span></li>
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

{% block results %}
{% endblock %}

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
