"""Numbers as a reader sees them. A share is a percentage; a figure too small for its last digit is "< 0.1 %", never a false zero."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
NOT_THERE = "\N{EN DASH}"


def percent(share: float, digits: int = 1) -> str:
    """Of a share from 0 to 1, or of a limit: 0.0312 -> "3.1 %"; 0 -> "0 %"; 0.0002 -> "< 0.1 %"; 0.9999 -> "> 99.9 %"; 1 -> "100 %"."""
    smallest = 10.0 ** -(digits + 2)
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if 0 < share < smallest / 2:
        return f"< {100 * smallest:.{digits}f} %"
    if 1 - smallest / 2 <= share < 1:
        return f"> {100 * (1 - smallest):.{digits}f} %"
    return f"{100 * share:.{digits}f} %".replace("-", MINUS)


def signed_percent(change: float, digits: int = 1) -> str:
    """0.105 -> "+10.5 %"; -0.03 -> "−3.0 %"."""
    return f"{100 * change:+.{digits}f} %".replace("-", MINUS)


def span(low: str, high: str) -> str:
    """An interval whose ends are written already: "2.1 to 4.2 %"; one of them where both read the same."""
    if low == high:
        return low
    plain = low.endswith(" %") and high.endswith(" %") and not {"<", ">"} & {low[0], high[0]}
    return f"{low.removesuffix(' %')} to {high}" if plain else f"{low} to {high}"


def number(value: float) -> str:
    """Three significant digits, and no fewer than all digits before the point: 26.3, 0.0312, 1,840, 2.1 billion, 4.2e-07."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".replace("-", MINUS)
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 15:
        return f"{value:.1e}".replace("-", MINUS)
    for power, name in ((12, "trillion"), (9, "billion"), (6, "million")):
        if size >= power:
            return f"{value / 10**power:.{max(0, 1 - size + power)}f} {name}".replace("-", MINUS)
    return f"{value:,.{max(0, 2 - size)}f}".replace("-", MINUS)


def listed(words: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
