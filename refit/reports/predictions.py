"""The page of predictions: a single HTML file with thumbnails, least certain first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refit.artifacts.files import write_bytes
from refit.artifacts.model import ModelRecord
from refit.reports.style import page_template
from refit.reports.thumbnails import thumbnail

SHOWN = 200  # thumbnails: the page has at most a few megabytes
_NAMED = 20  # files left out
_CLASSES = 10  # named

Rows = Sequence[Mapping[str, object]]


def least_certain(rows: Rows) -> list[int]:
    """The positions of the rows that the page shows: of the lowest probabilities, in this order."""
    return sorted(range(len(rows)), key=lambda i: float(str(rows[i]["probability"])))[:SHOWN]


def write_predictions_page(
    path: Path,
    rows: Rows,
    pixels: npt.NDArray[np.uint8],
    model: ModelRecord,
    of: str,
    left_out: Sequence[Mapping[str, str]],
    abstain_below: float,
    *,
    debug: bool,
) -> None:
    """Write the page. The same arguments give the same bytes.

    rows: of predictions.csv. pixels: the images that the page shows, uint8 (M, C, H, W), in the order of
    least_certain(rows). of: what the images are, such as `new images`. left_out: files without a prediction, each with
    `file` and `why`. abstain_below: that of predict. debug: whether to mark the page as that of a debug run.
    """
    predicted = Counter(str(row["label"]) for row in rows)
    html = page_template(_HTML, count="{:,}".format).render(
        cards=[_card(rows[i], image) for i, image in zip(least_certain(rows), pixels, strict=True)],
        images=len(rows),
        doubtful=sum(row["abstained"] == "yes" for row in rows),
        predicted=sorted(predicted.items(), key=lambda pair: (-pair[1], pair[0])),
        model=model,
        classes=listed(model.classes),
        of=of,
        abstain_below=f"{abstain_below:g}",
        never=never_in_doubt(abstain_below, len(model.classes)),
        left_out=left_out[:_NAMED],
        left_out_count=len(left_out),
        debug=debug,
    )
    write_bytes(path, html.encode())


def never_in_doubt(abstain_below: float, classes: int) -> str:
    """Why no image can be in doubt; empty if one can, or if predict.abstain_below is 0, which says the same."""
    if not 0 < abstain_below <= 1 / classes:
        return ""
    return (
        f"predict.abstain_below is {abstain_below:g}: with {classes:,} classes no image is ever below it, as the most "
        f"probable class has at least {1 / classes:.3g}"
    )


def listed(classes: Sequence[str]) -> str:
    """The number of classes and the names of the first few."""
    more = ", ..." if len(classes) > _CLASSES else ""
    return f"{len(classes):,} classes: {', '.join(classes[:_CLASSES])}{more}"


def _card(row: Mapping[str, object], image: npt.NDArray[np.uint8]) -> dict[str, object]:
    others = [(row[name], row[f"probability{name.removeprefix('label')}"]) for name in row if name.startswith("label_")]
    return {"row": row, "others": others, "thumbnail": thumbnail(image)}


_HTML = """\
<title>{{ images | count }} predictions, {{ doubtful | count }} in doubt</title>
<style>
{{ style | safe }}
  :root { --doubt: #b34700; }
  @media (prefers-color-scheme: dark) { :root { --doubt: #ff9d5c; } }
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.2rem, 1fr)); gap: .7rem; padding: 0;
           margin: 1rem 0; list-style: none; }
  .cards li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem;
              font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; break-inside: avoid; }
  .cards li.doubt { border-color: var(--doubt); }
  .cards img { width: 100%; height: 8rem; object-fit: contain; margin-bottom: .45rem; background: none; }
  .cards .pixelated { image-rendering: pixelated; }
  .cards b { font-size: 1rem; }
  .cards .meter { height: 4px; border-radius: 2px; margin: .25rem 0 .35rem;
                  background: linear-gradient(var(--bar) 0 0) no-repeat 0 0 / var(--share) 100% var(--line); }
  .doubtful { color: var(--doubt); font-weight: 600; white-space: nowrap; }
</style>
</head>
<body>
<header>
{% if debug %}
<p class="debug">A debug run: these are not the answers of a fully trained model on all images.</p>
{% endif %}
<h1>{{ images | count }} prediction{{ "s" if images != 1 }}, {{ doubtful | count }} in doubt</h1>
<p class="quiet">Of {{ of }}, by model <code>{{ model.sha256 }}</code></p>
<p class="quiet">The model knows {{ classes }}. It assigns every image to
one of them, whatever the image shows.</p>
<nav>
  {% if left_out %}<a href="#left_out">Left out</a>{% endif %}

  <a href="#images">Images</a> <a href="#classes">Predicted classes</a>
</nav>
</header>
<main>
{% if left_out %}
<h2 id="left_out">Files without a prediction</h2>
<div class="scroll"><table class="text"><tbody>
{% for file in left_out %}
<tr><td>{{ file.file }}</td><td>{{ file.why }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if left_out | length < left_out_count %}
<p class="quiet">The first {{ left_out | length | count }} of {{ left_out_count | count }}; summary.json beside this
page has all.</p>
{% endif %}
{% endif %}

<h2 id="images">Images, least certain first</h2>
<p class="quiet">\
{% if cards | length < images %}
The {{ cards | length | count }} least certain of {{ images | count }}; predictions.csv beside this page has all.
{% endif %}
Each image is shown as the model sees it. \
{% if never %}
{{ never }}.</p>
{% else %}
In doubt: its probability is below predict.abstain_below = {{ abstain_below }}.</p>
{% endif %}
<ul class="cards">
{% for card in cards %}
{% set doubt = card.row.abstained == "yes" %}
<li{{ ' class="doubt"' | safe if doubt }}>
<img src="{{ card.thumbnail.url }}"{{ ' class="pixelated"' | safe if card.thumbnail.pixelated }} alt="">
<b>{{ card.row.label }}</b> {{ card.row.probability | percent }}\
{{ ' <span class="doubtful">in doubt</span>' | safe if doubt }}
<div class="meter" style="--share: {{ "%.1f" | format(card.row.probability * 100) }}%"></div>
{% if card.others %}
<div class="quiet">{% for label, probability in card.others %}{{ label }} {{ probability | percent }}\
{{ ", " if not loop.last }}{% endfor %}</div>
{% endif %}
<div class="quiet">{{ card.row.file }}</div>
</li>
{% endfor %}
</ul>

<h2 id="classes">Predicted classes</h2>
<div class="scroll"><table>
<thead><tr><th>class</th><th>images</th><th>share</th></tr></thead>
<tbody>
{% for name, number in predicted %}
<tr><th>{{ name }}</th><td>{{ number | count }}</td>\
<td class="bar" style="--share: {{ "%.1f" | format(100 * number / images) }}%">\
{{ (number / images) | percent }}</td></tr>
{% endfor %}
</tbody></table></div>
</main>
</body>
</html>
"""
