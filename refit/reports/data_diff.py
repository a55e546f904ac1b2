"""The page of what differs between two data sets, with pictures. A single HTML file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from refit.artifacts.files import write_bytes
from refit.artifacts.prepared import Pixels
from refit.data.diff import KINDS, Difference
from refit.reports.style import page_template
from refit.reports.thumbnails import STYLE, Thumbnail, thumbnail

SHOWN = 60  # images of each kind
_SIDE = 112  # pixels


def write_data_diff(
    path: Path,
    names: tuple[str, str],
    found: Sequence[Difference],
    pixels_of_a: Callable[[str], Pixels],
    pixels_of_b: Callable[[str], Pixels],
) -> None:
    """Write the page. names: those of A and B. pixels_of_a, pixels_of_b: an image's name to its pixels, (C, H, W)."""

    def pictures(one: Difference) -> list[Thumbnail]:
        shown = []
        if one.before and one.kind in ("removed", "changed"):
            shown.append(thumbnail(pixels_of_a(one.before.name), _SIDE))
        if one.after:
            shown.append(thumbnail(pixels_of_b(one.after.name), _SIDE))
        return shown

    parts = []
    for kind, what in KINDS.items():
        of_kind = [one for one in found if one.kind == kind]
        if of_kind:
            cards = [(one.describe(), pictures(one)) for one in of_kind[:SHOWN]]
            parts.append({"kind": kind, "what": what, "number": len(of_kind), "cards": cards})
    html = page_template(_HTML, count="{:,}".format).render(
        a=names[0], b=names[1], number=len(found), parts=parts, cards_style=STYLE
    )
    write_bytes(path, html.encode())


_HTML = """\
<title>{{ number | count }} differences of {{ a }} and {{ b }}</title>
<style>
{{ style | safe }}
{{ cards_style | safe }}
  .cards .two { display: flex; gap: .3rem; } .cards .two img { min-width: 0; }
</style>
</head>
<body>
<header>
<h1>{{ number | count }} differences in the data</h1>
<p class="quiet">A: {{ a }}. B: {{ b }}.</p>
<nav>{% for part in parts %}<a href="#{{ part.kind }}">{{ part.kind }}</a> {% endfor %}</nav>
</header>
<main>
{% for part in parts %}
<h2 id="{{ part.kind }}">{{ part.number | count }} {{ part.kind }}</h2>
<p class="quiet">{{ part.what[0] | upper }}{{ part.what[1:] }}.\
{% if part.cards | length < part.number %} The first {{ part.cards | length }} are shown.{% endif %}</p>
<ul class="cards">
{% for text, pictures in part.cards %}
<li><div class="two">
{% for picture in pictures %}
<img src="{{ picture.url }}"{{ ' class="pixelated"' | safe if picture.pixelated }} alt="">
{% endfor %}
</div>{{ text }}</li>
{% endfor %}
</ul>
{% endfor %}
</main>
</body>
</html>
"""
