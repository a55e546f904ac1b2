"""Let `dvc plots show` and `dvc plots diff` draw without a network: `python -m pipelines.tools.offline_plots PAGE`.

DVC's own page loads Vega from a content delivery network. PAGE becomes a template that contains Vega; DVC uses it
once its setting plots.html_template names it.
"""

from pathlib import Path

import vl_convert

from refit.artifacts.files import write_bytes
from refit.runtime.command import command_parser, run_command

VEGA_LITE = "5.21"  # DVC's plots are written for version 5

# DVC fills in {refresh_tag} and {plot_divs}. Its {scripts}, the tags that load Vega, are left out.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<style>
  body { font-family: system-ui, sans-serif; }
  img { max-width: 46vw; height: auto; }
</style>
<script>VEGA</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def offline_page() -> str:
    """DVC's page with Vega, Vega-Lite and Vega-Embed included."""
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    assert "</script" not in vega, "it would end the script too early"
    assert "{plot_divs}" not in vega, "DVC would replace it"
    return PAGE.replace("VEGA", vega)


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("page", metavar="PAGE", type=Path, help="the file to write")
    run_command(lambda page: write_bytes(page, offline_page().encode()), parser)
