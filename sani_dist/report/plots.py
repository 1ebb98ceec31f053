"""The plots, drawn as SVG by hand: no script, no font, no network; colours come from the page's style sheet.

Before is a hollow circle, after a full one, the control a diamond: shape and place tell them apart where colour does not. Every figure
carries a title and a description for readers who do not see it; strips in table cells are hidden from them, as the numbers stand beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from markupsafe import Markup

from sani_dist.audit.measurement import Measurement
from sani_dist.report.words import number, percent

# In user units, which are pixels until the page scales a figure down.
STRIP_WIDTH, LANE = 220, 12
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 18, 52
# Steps up to which each point of a curve gets a dot.
MOST_DOTS = 40
# The vertical axis of a share reaches at least this far: below it, differences are not worth a picture.
LEAST_SHARE = 0.05

Marks = Mapping[str, Measurement | None]


def strip(marks: Marks) -> Markup:
    """Intervals of one line of a table on a common scale from 0 to 1, a lane each; keys: before, after, control."""
    height = LANE * len(marks) + 2
    axis = _Axis(0, 1, 8, STRIP_WIDTH - 8)
    parts = [f'<line class="grid" x1="{_p(axis(t))}" x2="{_p(axis(t))}" y1="0" y2="{height}"/>' for t in (0, 0.5, 1)]
    for lane, (role, measured) in enumerate(marks.items()):
        if measured is not None and measured.value is not None:
            y = 1 + LANE * (lane + 0.5)
            parts += [_across(role, measured, axis, y), _mark(role, axis(measured.value), y, 4)]
    return _decoration("strip", STRIP_WIDTH, height, parts)


def strip_scale() -> Markup:
    """The scale above a column of strips."""
    places = ((0.0, 0.0, "start"), (0.5, STRIP_WIDTH / 2, "middle"), (1.0, float(STRIP_WIDTH), "end"))
    return _decoration("strip", STRIP_WIDTH, 14, [_text(x, 11, _percent(share), anchor) for share, x, anchor in places])


def legend_mark(role: str) -> Markup:
    line = f'<line class="interval {role}" x1="2" x2="26" y1="7" y2="7"/>'
    return _decoration("key", 28, 14, [line, _mark(role, 14, 7, 4.5)])


def tradeoff(
    cost: Mapping[str, Measurement],
    leak: Mapping[str, Measurement],
    control: Measurement | None,
    labels: tuple[str, str],
) -> Markup:
    """What is lost against what leaks: a point with both intervals "before" and "after", the control as a line.

    All measurements have a value. `labels`: of the horizontal axis (cost) and of the vertical one (leak, a share).
    """
    low, high = min(map(_low, cost.values())), max(map(_high, cost.values()))
    margin = 0.15 * (high - low) or 0.1 * high
    guessing = None if control is None else control.value
    top = _round_up(max(LEAST_SHARE, *map(_high, leak.values())))
    canvas = _Canvas(640, 340, (max(0.0, low - margin), high + margin), (0, top))
    parts = [canvas.frame(labels, _plain, _percent)]
    places = {when: (canvas.x(_value(cost[when])), canvas.y(_value(leak[when]))) for when in ("before", "after")}
    right = places["after"][0] >= places["before"][0]
    if guessing is not None:
        # The label goes to the side that the point after, which lies low as the line does, leaves free.
        edge, anchor = (LEFT + 6.0, "start") if right else (canvas.width - RIGHT - 6.0, "end")
        y = canvas.y(guessing)
        parts.append(f'<line class="control-line" x1="{LEFT}" x2="{canvas.width - RIGHT}" y1="{_p(y)}" y2="{_p(y)}"/>')
        parts.append(_text(edge, y - 7, f"never trained on: {percent(guessing)}", anchor, "label control"))
    parts.append(_arrow(places["before"], places["after"]))
    for when, (x, y) in places.items():
        parts += [_across(when, cost[when], canvas.x, y), _upright(when, leak[when], canvas.y, x), _mark(when, x, y, 7)]
        # Away from the arrow, unless the label would leave the figure there.
        start = x < LEFT + 170 or ((when == "after") == right and x < canvas.width - 190)
        text = f"{when}: {percent(_value(leak[when]))} at {number(_value(cost[when]))}"
        parts.append(_text(x + (12 if start else -12), y - 12, text, "start" if start else "end", f"label {when}"))
    said = [f"{w.capitalize()}: {percent(_value(leak[w]))} at {number(_value(cost[w]))}." for w in ("before", "after")]
    if guessing is not None:
        said.append(f"Never trained on: {percent(guessing)}.")
    return canvas.figure("tradeoff", f"{labels[1]} against {labels[0]}", " ".join(said), parts)


def curve(steps: Sequence[int], values: Sequence[float], name: str, labels: tuple[str, str]) -> Markup:
    """A line over training steps; `name` tells figures of one page apart, `labels` are those of the two axes."""
    low, high = min(values), max(values)
    # A curve that stays well above zero would be flat on a scale from zero.
    top = _round_up(high)
    bottom = 0.0 if low < 0.6 * high or _round_down(low) == top else _round_down(low)
    canvas = _Canvas(440, 280, (0, max(steps)), (bottom, top))
    points = [(_p(canvas.x(step)), _p(canvas.y(value))) for step, value in zip(steps, values, strict=True)]
    parts = [canvas.frame(labels, _plain, _plain)]
    parts.append(f'<polyline class="curve" points="{" ".join(f"{x},{y}" for x, y in points)}"/>')
    if len(points) <= MOST_DOTS:
        parts += [f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in points]
    said = (
        f"From {number(values[0])} at step {steps[0]} to {number(values[-1])} at step {steps[-1]}; "
        f"lowest {number(low)}, highest {number(high)}."
    )
    return canvas.figure(name, f"{labels[1]} by {labels[0]}", said, parts)


def layers(erased: Mapping[int, int], layer_count: int, neurons: int | None) -> Markup:
    """Neurons reset in each layer, as bars: shares of the layer where its size is known, else counts."""
    shown = {layer: count / neurons if neurons else float(count) for layer, count in sorted(erased.items())}
    canvas = _Canvas(640, 230, (-0.5, layer_count - 0.5), (0, _round_up(max(shown.values()))))
    width = max(1.0, 0.7 * (canvas.x(1) - canvas.x(0)))
    parts = [canvas.frame(("layer (0 is next to the input)", "neurons reset"), _plain, _percent if neurons else _plain)]
    for layer, value in shown.items():
        left, top = canvas.x(layer) - width / 2, canvas.y(value)
        size = f'width="{_p(width)}" height="{_p(canvas.y(0) - top)}"'
        parts.append(f'<rect class="bar" x="{_p(left)}" y="{_p(top)}" {size} rx="1"/>')
    said = "; ".join(f"layer {layer}: {erased[layer]:,}" for layer in shown) + "."
    return canvas.figure("layers", f"Neurons reset in each of {layer_count} layers", said, parts)


def heat_map(columns: Sequence[int], lines: Mapping[str, Sequence[float]], name: str) -> Markup:
    """Shares by layer, a line for each kind of identifier and, apart, a last one to compare them with; the stronger the more."""
    left, top, height, gap = 176, 34, 26, 10
    width = 640 - left - RIGHT
    across = width / len(columns)
    most = max(max(shares) for shares in lines.values()) or 1.0
    every = math.ceil(len(columns) / (width / 34))  # of the layers' numbers, as many as there is room for
    parts = [
        _text(left + (i + 0.5) * across, top - 8, str(layer), "middle")
        for i, layer in enumerate(columns)
        if i % every == 0
    ]
    parts.append(_text(left - 10, top - 8, "layer", "end"))
    for line, (kind, shares) in enumerate(lines.items()):
        y = top + line * height + (gap if line == len(lines) - 1 else 0)
        parts.append(_text(left - 10, y + height / 2 + 4, _shortened(kind), "end", "label"))
        for i, value in enumerate(shares):
            parts.append(_cell(left + i * across, y, across, height, value / most))
    bottom = top + len(lines) * height + gap + 14
    for step in range(5):
        parts.append(_cell(left + step * 34, bottom, 34, 12, step / 4))
    parts.append(_text(left - 10, bottom + 10, "share of a line", "end"))
    parts.append(_text(left, bottom + 27, "0 %", "start"))
    parts.append(_text(left + 5 * 34, bottom + 27, percent(most), "end"))
    said = "; ".join(
        f"{kind}: most in layer {columns[max(range(len(shares)), key=shares.__getitem__)]}, {percent(max(shares))}"
        for kind, shares in lines.items()
    )
    return _figure(640, bottom + 34, name, "Where memory sat, by layer and kind of identifier", f"{said}.", parts)


# Scales and frames


@dataclass(frozen=True)
class _Axis:
    """Linear scale from data `low`..`high` to pixels `start`..`stop`; what lies outside is drawn at the end."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round values, roughly `about` of them."""
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


class _Canvas:
    """A figure of `width` x `height` with two linear axes."""

    def __init__(self, width: int, height: int, across: tuple[float, float], up: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self.x = _Axis(*across, LEFT, width - RIGHT)
        self.y = _Axis(*up, height - BOTTOM, TOP)

    def frame(self, labels: tuple[str, str], write_x: Callable[[float], str], write_y: Callable[[float], str]) -> str:
        """Grid, axis, ticks and the labels of both axes."""
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        parts = []
        for tick in self.y.ticks(5):
            y = _p(self.y(tick))
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
            parts.append(_text(LEFT - 8, self.y(tick) + 4, write_y(tick), "end"))
        for tick in self.x.ticks(6):
            x = _p(self.x(tick))
            parts.append(f'<line class="tick" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
            parts.append(_text(self.x(tick), bottom + 19, write_x(tick), "middle"))
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        parts.append(_text((LEFT + right) / 2, self.height - 8, labels[0], "middle", "label"))
        middle = _p((TOP + bottom) / 2)
        turned = f'transform="rotate(-90 14 {middle})"'
        parts.append(
            f'<text class="label" x="14" y="{middle}" text-anchor="middle" {turned}>{escape(labels[1])}</text>'
        )
        return "".join(parts)

    def figure(self, name: str, title: str, description: str, parts: Sequence[str]) -> Markup:
        return _figure(self.width, self.height, name, title, description, parts)


def _figure(width: int, height: int, name: str, title: str, description: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-text"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-text">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


# Marks


def _cell(x: float, y: float, width: float, height: float, strength: float) -> str:
    """A cell of a heat map, with a hair of paper around it."""
    place = f'x="{_p(x + 0.5)}" y="{_p(y + 0.5)}" width="{_p(width - 1)}" height="{_p(height - 1)}"'
    return f'<rect class="heat" {place} fill-opacity="{0.04 + 0.96 * strength:.3f}"/>'


def _shortened(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _decoration(css: str, width: int, height: int, parts: Sequence[str]) -> Markup:
    """A small drawing that repeats what stands beside it in words."""
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true" '
        f'focusable="false">{"".join(parts)}</svg>'
    )


def _across(role: str, measured: Measurement, axis: _Axis, y: float) -> str:
    ends = f'x1="{_p(axis(_low(measured)))}" x2="{_p(axis(_high(measured)))}"'
    return f'<line class="interval {role}" {ends} y1="{_p(y)}" y2="{_p(y)}"/>'


def _upright(role: str, measured: Measurement, axis: _Axis, x: float) -> str:
    ends = f'y1="{_p(axis(_low(measured)))}" y2="{_p(axis(_high(measured)))}"'
    return f'<line class="interval {role}" x1="{_p(x)}" x2="{_p(x)}" {ends}/>'


def _mark(role: str, x: float, y: float, radius: float) -> str:
    if role == "control":
        r = radius * 1.15
        corners = ((x, y - r), (x + r, y), (x, y + r), (x - r, y))
        return f'<path class="mark {role}" d="M{"L".join(f"{_p(a)} {_p(b)}" for a, b in corners)}Z"/>'
    return f'<circle class="mark {role}" cx="{_p(x)}" cy="{_p(y)}" r="{_p(radius)}"/>'


def _arrow(start: tuple[float, float], stop: tuple[float, float]) -> str:
    """From point to point, ending short of both marks; nothing where they nearly touch."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(dx, dy)
    if length < 40:
        return ""
    ux, uy = dx / length, dy / length
    tail, tip = (start[0] + 14 * ux, start[1] + 14 * uy), (stop[0] - 14 * ux, stop[1] - 14 * uy)
    wings = [(tip[0] - 9 * ux + side * 5 * uy, tip[1] - 9 * uy - side * 5 * ux) for side in (1, -1)]
    path = "M{}L{}M{}L{}L{}".format(*(f"{_p(x)} {_p(y)}" for x, y in (tail, tip, wings[0], tip, wings[1])))
    return f'<path class="arrow" d="{path}"/>'


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick-label") -> str:
    return f'<text class="{css}" x="{_p(x)}" y="{_p(y)}" text-anchor="{anchor}">{escape(text)}</text>'


# Numbers


def _value(measured: Measurement) -> float:
    if measured.value is None:
        raise ValueError(f"{measured.metric} of {measured.population} has no value to draw")
    return measured.value


def _low(measured: Measurement) -> float:
    return _value(measured) if measured.low is None else measured.low


def _high(measured: Measurement) -> float:
    return _value(measured) if measured.high is None else measured.high


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _plain(value: float) -> str:
    return f"{value:g}"


def _p(value: float) -> str:
    """A coordinate with as many digits as a screen shows."""
    return f"{value:.1f}".removesuffix(".0")


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 x 10^k that is not under `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9)))


def _round_up(value: float) -> float:
    """To the next tick; 1 for zero, so that an axis has a length."""
    step = _round_step(value / 5) if value > 0 else 1.0
    return max(1, math.ceil(value / step - 1e-9)) * step


def _round_down(value: float) -> float:
    step = _round_step(value / 5)
    return math.floor(value / step + 1e-9) * step
