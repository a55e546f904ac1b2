"""The page of an audit: a single HTML file with the suspects' pictures side by side, the worst first."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from refit.artifacts.files import write_bytes
from refit.artifacts.paths import AUDIT, DECISIONS, PREPARED_PAGE, SUSPECTS
from refit.artifacts.prepared import Pixels
from refit.artifacts.suspects import Suspect
from refit.reports.style import page_template
from refit.reports.thumbnails import STYLE, thumbnail

SHOWN = 100  # suspects of each kind: the page has at most a few megabytes


def write_audit_page(
    path: Path,
    name: str,
    images: int,
    duplicates: Sequence[Suspect],
    wrong: Sequence[Suspect],
    pixels: Callable[[str], Pixels],
    made_of: str,
) -> None:
    """Write the page. The same arguments give the same bytes.

    name: that of the data. images: how many were audited. duplicates, wrong: the suspects, the worst first. pixels:
    gives those of an image by its name, uint8 (C, H, W). made_of: what label errors were found by.
    """

    def cards(suspects: Sequence[Suspect]) -> list[dict[str, object]]:
        return [
            {"suspect": one, "pictures": [thumbnail(pixels(file)) for file in one.shown],
             "row": one.proposed()}
            for one in suspects[:SHOWN]
        ]  # fmt: skip

    html = page_template(_HTML, count="{:,}".format, score="{:.3f}".format).render(
        name=name,
        images=images,
        duplicates=duplicates,
        wrong=wrong,
        duplicate_cards=cards(duplicates),
        wrong_cards=cards(wrong),
        made_of=made_of,
        decisions=str(DECISIONS),
        suspects=SUSPECTS.name,
        cards_style=STYLE,
        data_page=os.path.relpath(PREPARED_PAGE, AUDIT),
    )
    write_bytes(path, html.encode())


_HTML = """\
<title>Audit of {{ name }}: {{ duplicates | length }} near-duplicates, {{ wrong | length }} label suspects</title>
<style>
{{ style | safe }}
{{ cards_style | safe }}
  .cards { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
  .pictures { display: flex; gap: .4rem; margin: .4rem 0; }
  .pictures figure { margin: 0; flex: 1 1 0; min-width: 0; }
  .pictures img { height: auto; max-height: 9rem; margin: 0; }
  figcaption { font-size: .78rem; }
  pre { overflow-x: auto; font-size: .78rem; background: var(--card); padding: .6rem; border-radius: .5rem; }
</style>
</head>
<body>
{% macro picture(image, caption) %}
<figure><img src="{{ image.url }}"{{ ' class="pixelated"' | safe if image.pixelated }} alt="">\
<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}
{% macro rows(cards, all) %}
{% if cards | length < all | length %}
<p class="quiet">The {{ cards | length | count }} worst of {{ all | length | count }}; {{ suspects }} beside this page
has all.</p>
{% endif %}
<details><summary>The rows above for {{ decisions }}: copy those that you agree with</summary>
<pre>{% for card in cards %}{{ card.row }}
{% endfor %}</pre></details>
{% endmacro %}
<header>
<h1>{{ duplicates | length | count }} pair{{ "s" if duplicates | length != 1 }} of near-duplicates, \
{{ wrong | length | count }} label{{ "s" if wrong | length != 1 }} in doubt</h1>
<p class="quiet">Of {{ images | count }} images of {{ name }}</p>
<p>These are proposals. Look, and decide with keys in the page of <code>make decide</code>, or in
<code>{{ decisions }}</code> with a row for an image: drop, relabel, or keep for one that is right, which is then no
suspect any more. <code>dvc repro</code> obeys, and <code>make versus</code>
shows what it was worth.</p>
<nav><a href="#duplicates">Near-duplicates</a> <a href="#labels">Labels</a>
<a href="{{ data_page }}">All of the data</a></nav>
</header>
<main>
<h2 id="duplicates">Near-duplicates</h2>
<p class="quiet">Pairs across splits first, then pairs with two labels. An image in train that is also in test makes
the test too easy.</p>
{% if duplicate_cards %}
<ul class="cards">
{% for card in duplicate_cards %}
{% set one = card.suspect %}
<li><b>{{ one.rank }}</b> similarity {{ one.score | score }}{{ ", mirrored" if one.mirrored }}\
{{ ", across splits" if one.image.split != one.other.split }}{{ ", two labels" if one.image.label != one.other.label }}
<div class="pictures">
{{ picture(card.pictures[0], one.image.split ~ ", " ~ one.image.label ~ ": " ~ one.image.file) }}
{{ picture(card.pictures[1], one.other.split ~ ", " ~ one.other.label ~ ": " ~ one.other.file) }}
</div>
<code>{{ card.row }}</code></li>
{% endfor %}
</ul>
{{ rows(duplicate_cards, duplicates) }}
{% else %}
<p>None.</p>
{% endif %}

<h2 id="labels">Labels</h2>
<p class="quiet">Images that a model which was not trained on them takes for another class, by {{ made_of }}. Beside
each: the most similar images of the suggested class and of its own.</p>
{% if wrong_cards %}
<ul class="cards">
{% for card in wrong_cards %}
{% set one = card.suspect %}
<li><b>{{ one.rank }}</b> {{ one.image.label }}, looks like <b>{{ one.suggested }}</b>; probability of its label
{{ one.score | percent }}
<div class="pictures">
{{ picture(card.pictures[0], one.image.split ~ ", " ~ one.image.label) }}
{{ picture(card.pictures[1], "most similar " ~ one.suggested) }}
{% if card.pictures | length > 2 %}
{{ picture(card.pictures[2], "most similar " ~ one.image.label) }}
{% endif %}
</div>
<code>{{ card.row }}</code></li>
{% endfor %}
</ul>
{{ rows(wrong_cards, wrong) }}
{% else %}
<p>None.</p>
{% endif %}
</main>
</body>
</html>
"""
