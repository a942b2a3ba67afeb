"""A horizontal bar chart as SVG, drawn with nothing but text."""

import math
from xml.sax.saxutils import escape

COLOURS = ("#b0b7c3", "#2f6fde")
LEFT, RIGHT, TOP, BAR, GAP = 140, 80, 64, 9, 8
PLOT = 620


def bars(title, series, rows):
    """@rows: list of (name, one value or None per entry of @series). Logarithmic scale, 1 marked."""
    values = [value for _, row in rows for value in row if value]
    low = min(-1, math.floor(math.log10(min(values))))
    high = max(0.3, math.ceil(math.log10(max(values)) * 4) / 4)

    def x(value):
        return LEFT + (math.log10(value) - low) / (high - low) * PLOT

    pitch = len(series) * BAR + GAP
    height = TOP + len(rows) * pitch + 30
    width = LEFT + PLOT + RIGHT
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           f'font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for i, name in enumerate(series):
        at = LEFT + i * 120
        out.append(f'<rect x="{at}" y="32" width="12" height="12" fill="{COLOURS[i]}"/>'
                   f'<text x="{at + 17}" y="42">{escape(name)}</text>')
    for exponent in range(low, math.floor(high) + 1):
        at = x(10.0 ** exponent)
        colour = "#444" if exponent == 0 else "#ddd"
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 6}" x2="{at:.1f}" y2="{height - 24}" '
                   f'stroke="{colour}"/><text x="{at:.1f}" y="{height - 10}" '
                   f'text-anchor="middle">{10.0 ** exponent:g}</text>')
    for i, (name, row) in enumerate(rows):
        top = TOP + i * pitch
        out.append(f'<text x="{LEFT - 8}" y="{top + pitch / 2:.1f}" text-anchor="end">'
                   f'{escape(name)}</text>')
        for k, value in enumerate(row):
            if not value:
                continue
            y = top + k * BAR
            out.append(f'<rect x="{LEFT}" y="{y}" width="{x(value) - LEFT:.1f}" height="{BAR - 1}" '
                       f'fill="{COLOURS[k]}"/><text x="{x(value) + 4:.1f}" y="{y + BAR - 1}" '
                       f'font-size="9">{value:.3g}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
