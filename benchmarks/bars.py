"""Bars as SVG, drawn by hand, for the page of the benchmarks: a file that any browser shows, in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from xml.sax.saxutils import escape

# In pixels.
WIDTH, RIGHT, TOP, BAR, GAP, LETTER = 720, 90, 34, 15, 12, 7
STYLE = """text{font:12px sans-serif;fill:#333}.title{font-weight:bold}rect{fill:#8a99ad}.first{fill:#b5482a}
@media(prefers-color-scheme:dark){text{fill:#ddd}rect{fill:#5f6f85}.first{fill:#e07a5a}}"""


def bars(title: str, groups: Mapping[str, Mapping[str, float]], written: Callable[[float], str]) -> str:
    """groups: {group: {bar: value}}, values >= 0, drawn from zero on one scale with the value written beside each bar; the first bar of
    each group stands out."""
    longest = max(map(len, groups)) + max(len(bar) for group in groups.values() for bar in group)
    left = LETTER * longest + 20
    scale = (WIDTH - left - RIGHT) / (max(value for group in groups.values() for value in group.values()) or 1)
    parts, y = [f'<text class="title" x="0" y="16">{escape(title)}</text>'], TOP
    for group, values in groups.items():
        parts.append(f'<text x="0" y="{y + BAR - 3}">{escape(group)}</text>')
        for place, (bar, value) in enumerate(values.items()):
            length, style = scale * value, ' class="first"' if place == 0 else ""
            middle = y + BAR - 3
            parts.append(f'<text x="{left - 6}" y="{middle}" text-anchor="end">{escape(bar)}</text>')
            parts.append(f'<rect{style} x="{left}" y="{y}" width="{length:.1f}" height="{BAR - 2}"/>')
            parts.append(f'<text x="{left + length + 6:.1f}" y="{middle}">{escape(written(value))}</text>')
            y += BAR
        y += GAP
    description = "; ".join(
        f"{group}: " + ", ".join(f"{bar} {written(value)}" for bar, value in values.items())
        for group, values in groups.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">\n'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>\n<style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )
