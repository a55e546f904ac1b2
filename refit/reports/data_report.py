"""The page of the prepared data: what is in it, how it looks, and what was left out. A single HTML file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refit.artifacts.files import write_bytes
from refit.artifacts.paths import AUDIT_PAGE, DECISIONS, PREPARED_LEFT_OUT
from refit.artifacts.prepared import DatasetInfo, ManifestRow, Split
from refit.data.pack import Packed
from refit.reports.style import page_template
from refit.reports.thumbnails import STYLE, Thumbnail, thumbnail

EXAMPLES = 7  # images shown of each class
MOST_CLASSES = 100  # whose images are shown: the page has at most a few megabytes
_AVERAGED = 60  # images of a class in its mean image
_SIDE = 96  # pixels of an example
_LISTED = 100  # rows of each table


class _Class(NamedTuple):
    name: str
    counts: Mapping[str, int]
    """Images by split."""
    total: int
    mean: Thumbnail | None
    """The mean of its training images."""
    examples: Sequence[Thumbnail]
    """Training images at equal distances."""


def write_data_report(path: Path, packed: Packed, train: Split, manifest: Sequence[ManifestRow]) -> None:
    """Write the page. The same arguments give the same bytes.

    train: the images of the train split. manifest: a row for each image of the set.
    """
    info, left_out, obeyed = packed.info, packed.left_out, sorted(packed.obeyed)
    split_of = {row.name: row.split for row in manifest}
    near = packed.near_duplicates
    by_class = Counter((row.label, row.split) for row in manifest)
    classes = [_class_of(label, name, info, train, by_class) for label, name in enumerate(info.classes)]
    copies = _copies(manifest)
    html = page_template(_HTML, count="{:,}".format).render(
        info=info,
        images=len(manifest),
        splits=list(info.counts),
        classes=classes,
        largest=max(one.total for one in classes),
        smallest=min(one.total for one in classes),
        sizes=_sizes(manifest),
        reasons=Counter(_reason(str(row["why"])) for row in left_out).most_common(),
        left_out=left_out[:_LISTED],
        left_out_count=len(left_out),
        copies=[(group[0].split, [row.name for row in group]) for group in copies[:_LISTED]],
        copies_count=len(copies),
        near=None if near is None else [(split_of[group[0]], group) for group in near[:_LISTED]],
        near_count=len(near or ()),
        kinds=Counter(decision.kind for decision in obeyed),
        obeyed=obeyed[:_LISTED],
        obeyed_count=len(obeyed),
        decisions_file=DECISIONS,
        left_out_file=PREPARED_LEFT_OUT,
        audit_page=AUDIT_PAGE,
        audit_link=AUDIT_PAGE.relative_to(DECISIONS.parent),
        cards_style=STYLE,
    )
    write_bytes(path, html.encode())


def _class_of(
    label: int, name: str, info: DatasetInfo, train: Split, by_class: Mapping[tuple[str, str], int]
) -> _Class:
    counts = {split: by_class[name, split] for split in info.counts}
    rows = np.flatnonzero(train.labels == label)
    if label >= MOST_CLASSES or not len(rows):
        return _Class(name, counts, sum(counts.values()), None, [])
    mean = train.images[_spread(rows, _AVERAGED)].mean(axis=0).round().astype(np.uint8)
    examples = [thumbnail(image, _SIDE) for image in train.images[_spread(rows, EXAMPLES)]]
    return _Class(name, counts, sum(counts.values()), thumbnail(mean, _SIDE), examples)


def _spread(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most so many of the rows, at equal distances."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(np.int64)]


def _sizes(manifest: Sequence[ManifestRow]) -> dict[str, str]:
    """The sizes of the raw images, by what they are."""
    common = Counter((row.width, row.height) for row in manifest).most_common(3)
    sides = {"widths": [row.width for row in manifest], "heights": [row.height for row in manifest]}
    ranges = {
        what: f"{min(of):,} to {max(of):,}, half of them up to {sorted(of)[len(of) // 2]:,}"
        for what, of in sides.items()
    }
    return {
        "most frequent": ", ".join(f"{width} x {height} ({count:,})" for (width, height), count in common),
        **ranges,
    }


def _reason(why: str) -> str:
    """Why a file was left out, without what is true of this one alone."""
    dropped = f"dropped by {DECISIONS}"
    return dropped if why.startswith(dropped) else why.partition(" of ")[0]


def _copies(manifest: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """The images with the same pixels, in groups of two or more."""
    groups: dict[str, list[ManifestRow]] = {}
    for row in manifest:
        groups.setdefault(row.sha256, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


_HTML = """\
<title>{{ images | count }} images of {{ classes | length | count }} classes</title>
<style>
{{ style | safe }}
{{ cards_style | safe }}
  .headline { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); }
  .examples { display: flex; flex-wrap: wrap; gap: .35rem; margin: .4rem 0 1.2rem; }
  .examples img { width: 6rem; height: 6rem; object-fit: contain; border-radius: .3rem; }
  .examples img:first-child { margin-right: .8rem; outline: 2px solid var(--bar); }
</style>
</head>
<body>
{% macro more(shown, all) %}
{% if shown | length < all %}
<p class="quiet">The first {{ shown | length | count }} of {{ all | count }}.</p>
{% endif %}
{% endmacro %}
{% macro groups(shown, all) %}
{% if shown %}
<div class="scroll"><table class="text"><tbody>
{% for split, names in shown %}
<tr><td>{{ split }}</td><td>{{ names | join(", ") }}</td></tr>
{% endfor %}
</tbody></table></div>
{{ more(shown, all) }}
{% endif %}
{% endmacro %}
<header>
<h1>{{ images | count }} images of {{ classes | length | count }} classes</h1>
<p class="quiet">Data set <code>{{ info.sha256 }}</code></p>
<nav>
  <a href="#classes">Classes</a> <a href="#images">Images</a> <a href="#sizes">Sizes</a> <a href="#copies">Copies</a>
  <a href="#left_out">Left out</a> <a href="#decisions">Decisions</a>
</nav>
</header>
<main>
<dl class="headline">
  {% for split in splits %}
  <div><dt>{{ split }}</dt><dd>{{ info.counts[split] | count }}</dd><dd class="quiet">images</dd></div>
  {% endfor %}
  <div><dt>Largest class</dt><dd>{{ largest | count }}</dd><dd class="quiet">the smallest has \
{{ smallest | count }}</dd></div>
  <div><dt>Left out</dt><dd>{{ left_out_count | count }}</dd><dd class="quiet">files</dd></div>
  <div><dt>Decisions</dt><dd>{{ obeyed_count | count }}</dd><dd class="quiet">about single images</dd></div>
</dl>

<h2 id="classes">Classes</h2>
<div class="scroll"><table>
<thead><tr><th>class</th>{% for split in splits %}<th>{{ split }}</th>{% endfor %}<th>images</th></tr></thead>
<tbody>
{% for one in classes %}
<tr><th>{{ one.name }}</th>{% for split in splits %}<td>{{ one.counts[split] | count }}</td>{% endfor %}\
<td class="bar" style="--share: {{ "%.1f" | format(100 * one.total / largest) }}%">{{ one.total | count }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2 id="images">Images</h2>
<p class="quiet">Of each class the mean of its training images, framed, and some of them, as the network gets them:
{{ info.shape[2] }} x {{ info.shape[1] }} pixels, {{ info.color }}.</p>
{% for one in classes if one.mean %}
<h3>{{ one.name }}</h3>
<div class="examples">
{% for picture in [one.mean] + one.examples | list %}
<img src="{{ picture.url }}"{{ ' class="pixelated"' | safe if picture.pixelated }} \
alt="{{ "the mean of" if loop.first else "an image of" }} {{ one.name }}">
{% endfor %}
</div>
{% endfor %}

<h2 id="sizes">Sizes of the raw images</h2>
<dl class="facts">
  {% for what, values in sizes.items() %}
  <dt>{{ what }}</dt><dd>{{ values }}</dd>
  {% endfor %}
</dl>

<h2 id="copies">Copies</h2>
{% if copies %}
<p class="quiet">{{ copies_count | count }} group{{ "s" if copies_count != 1 }} of images with the same pixels, each \
in one split.</p>
{{ groups(copies, copies_count) }}
{% else %}
<p class="quiet">None: no two images of a split have the same pixels.</p>
{% endif %}
{% if near is none %}
<p class="quiet">Near-duplicates, and labels in doubt, are not looked for here. <code>make audit</code> lists them with
pictures in <a href="{{ audit_link }}">{{ audit_page }}</a>.</p>
{% else %}
<p class="quiet">{{ near_count | count }} group{{ "s" if near_count != 1 }} of near-duplicates, identical images \
among them, each in one split (<code>data.group_duplicates</code>).</p>
{{ groups(near, near_count) }}
<p class="quiet">Labels in doubt are not looked for here. <code>make audit</code> lists them with pictures in
<a href="{{ audit_link }}">{{ audit_page }}</a>.</p>
{% endif %}

<h2 id="left_out">Left out</h2>
{% if left_out %}
<ul class="quiet">{% for why, files in reasons %}<li>{{ files | count }}: {{ why }}</li>{% endfor %}</ul>
<div class="scroll"><table class="text"><tbody>
{% for file in left_out %}
<tr><td>{{ file.file }}</td><td>{{ file.why }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if left_out | length < left_out_count %}
<p class="quiet">The first {{ left_out | length | count }}; {{ left_out_file }} has all.</p>
{% endif %}
{% else %}
<p class="quiet">Nothing: every file of the source is in the data set.</p>
{% endif %}

<h2 id="decisions">Decisions</h2>
{% if obeyed %}
<p class="quiet">What people decided about single images in <code>{{ decisions_file }}</code>, and this data set obeys:
{% for kind, count in kinds | dictsort %}{{ count | count }} {{ kind }}{{ ", " if not loop.last }}{% endfor %}.</p>
<div class="scroll"><table class="text">
<thead><tr><th>file</th><th>decision</th><th>why</th></tr></thead>
<tbody>
{% for one in obeyed %}
<tr><td>{{ one.file }}</td><td>{{ one.kind }}{{ " to " ~ one.label if one.label }}</td><td>{{ one.why }}</td></tr>
{% endfor %}
</tbody></table></div>
{{ more(obeyed, obeyed_count) }}
{% else %}
<p class="quiet">None: <code>{{ decisions_file }}</code> has no decision about an image of this source. After
<code>make audit</code>, <code>make decide</code> shows the suspects one by one.</p>
{% endif %}
</main>
</body>
</html>
"""
