"""What all pages share: their head, their style, and how pages and pictures write a percentage."""

from collections.abc import Callable

from jinja2 import DictLoader, Environment, StrictUndefined, Template

_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""

STYLE = """\
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
  .advice { margin: .4rem 0; padding-left: 1.2rem; max-width: 46rem; } .advice li { margin: .5rem 0; }
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
"""
"""CSS, in a light and a dark version, and for print."""


def page_template(html: str, blocks: str = "", **filters: Callable[..., object]) -> Template:
    """The template of a page, whose values are escaped. `html` begins with its title and has `{{ style | safe }}`;
    `blocks` fills the blocks that `html` leaves open."""
    environment = Environment(loader=DictLoader({"page": _HEAD + html}), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters.update(percent=percent, **filters)
    return environment.from_string('{% extends "page" %}' + blocks, {"style": STYLE})


def percent(share: float, decimals: int = 1) -> str:
    """A share such as 98.9 %; never rounded up to 100 % or down to 0 %."""
    value = round(share * 100, decimals)
    step = 10**-decimals
    if value >= 100 > share * 100:
        value = 100 - step
    if value <= 0 < share:
        value = step
    return f"{value:.{decimals}f}\N{NO-BREAK SPACE}%"
