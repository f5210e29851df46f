"""The chart: a panel of horizontal bars for each measurement, as SVG."""

import math
from html import escape

from lib.report import Bar, Bars
from lib.rounds import shown

WIDTH = 460
LABEL_WIDTH = 150
VALUE_WIDTH = 70
BAR_WIDTH = WIDTH - LABEL_WIDTH - VALUE_WIDTH
BAR_HEIGHT = 18
TITLE_HEIGHT = 34
GAP = 24
N_COLUMNS = 2

LOGARITHMIC_FROM = 40
"""Most over least from which the bars of a panel are logarithmic."""

STYLE = """
text { font: 12px sans-serif; fill: #333 }
.title { font-weight: bold }
.ours { fill: #2a6fdb }
.other { fill: #b4bac4 }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .other { fill: #68707c } }
"""


def svg(panels: list[Bars]) -> str:
    """Draws the panels in two columns, each below the shorter one so far."""
    heights = [GAP] * N_COLUMNS
    drawn = []
    for panel in panels:
        column = heights.index(min(heights))
        drawn.append(_panel(panel, GAP + column * (WIDTH + GAP), heights[column]))
        heights[column] += TITLE_HEIGHT + BAR_HEIGHT * len(panel.bars) + GAP
    size = f'width="{GAP + N_COLUMNS * (WIDTH + GAP)}" height="{max(heights)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{"".join(drawn)}</svg>\n'


def _panel(panel: Bars, x: int, y: int) -> str:
    values = [bar.value for bar in panel.bars if bar.value > 0]
    logarithmic = bool(values) and max(values) / min(values) >= LOGARITHMIC_FROM
    title = panel.title + (" (logarithmic)" if logarithmic else "")
    lines = [f'<g transform="translate({x} {y})">', f'<text class="title" y="14">{escape(title)}</text>']
    for number, bar in enumerate(panel.bars):
        lines.append(_bar(bar, TITLE_HEIGHT - 8 + number * BAR_HEIGHT, _length(bar.value, values, logarithmic)))
    return "\n".join([*lines, "</g>\n"])


def _bar(bar: Bar, y: int, length: float) -> str:
    style = "ours" if bar.is_ours else "other"
    base = y + BAR_HEIGHT - 6
    return (
        f'<text x="{LABEL_WIDTH - 6}" y="{base}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect class="{style}" x="{LABEL_WIDTH}" y="{y}" width="{length:.1f}" height="{BAR_HEIGHT - 4}"/>'
        f'<text x="{LABEL_WIDTH + length + 5:.1f}" y="{base}">{shown(bar.value)}</text>'
    )


def _length(value: float, values: list[float], logarithmic: bool) -> float:
    if value <= 0:
        return 0.0
    if not logarithmic:
        return BAR_WIDTH * value / max(values)
    # A decade and a bit for the least, so that it can be seen.
    least = math.log(min(values)) - 1
    return BAR_WIDTH * (math.log(value) - least) / (math.log(max(values)) - least)
