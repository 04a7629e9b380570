"""Pictures inside a page: values that show under the pointer, names of their own, colours that
follow a dark theme.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

DARK = "#14191e"
"""The ground of a page in the dark."""
CONTRASTS = (3.05, 14.0)
"""Least, which WCAG asks of graphics, and greatest of anything with the ground in the dark."""
_POINTS = 72
"""Of an inch; the unit of matplotlib's SVG."""
_LEFT_OUT = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<defs>\s*<style.*?</style>\s*</defs>",
        r"<!--.*?-->",
        r'\s(?:width|height)="[\d.]+pt"',
    )
]
"""Of a file: what a page has for all its pictures, or does not need."""
_REACH = 4.5
"""Points around a value in which the pointer finds it."""


@dataclass
class Values:
    """What is said under the pointer, in the order in which it was drawn: the last lies on top."""

    _said: list[tuple[Axes, float, float, str]] = field(default_factory=list)

    def add(self, axes: Axes, x: float, y: float, words: str) -> None:
        """A value at a place in its axes' coordinates; one that is not a number is left out."""
        if np.isfinite(x) and np.isfinite(y):
            self._said.append((axes, x, y, words))

    def put_into(self, svg: str, figure: Figure) -> str:
        """The drawn figure with them, each a circle that is not seen, with a title."""
        height = figure.get_size_inches()[1] * _POINTS
        circles = []
        for axes, x, y, words in self._said:
            right, up = axes.transData.transform((x, y)) / figure.dpi * _POINTS
            place = f'cx="{right:.1f}" cy="{height - up:.1f}" r="{_REACH}"'
            circles.append(f"<circle {place}><title>{html.escape(words)}</title></circle>")
        if not circles:
            return svg
        group = '<g class="values" fill="#000000" fill-opacity="0">\n' + "\n".join(circles)
        return svg.removesuffix("\n").removesuffix("</svg>") + group + "\n</g>\n</svg>\n"


def inlined(svg: str, name: str, label: str) -> str:
    """The picture as an element of a page.

    Args:
        svg: Of a file.
        name: Put before every id, since those of all pictures share the page.
        label: What it shows, for who does not see it.
    """
    body = svg[svg.index("<svg") :]
    for left_out in _LEFT_OUT:
        body = left_out.sub("", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'\bhref="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    body = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda found: _variable(found[0]), body)
    words = f'role="img" aria-label="{html.escape(label)}"'
    # black words have no colour of their own in matplotlib's files
    return body.replace("<svg", f'<svg {words} style="fill: {_variable("#000000")}"', 1)


def _variable(colour: str) -> str:
    return f"var(--c{colour.removeprefix('#')}, {colour})"


def dark_colours(body: str) -> str:
    """Declarations for the dark of every colour that a page's inlined pictures have."""
    used = sorted(set(re.findall(r"var\(--c(\w{6}),", body)))
    return " ".join(f"--c{colour}: {in_the_dark(f'#{colour}')};" for colour in used)


def in_the_dark(colour: str) -> str:
    """Grounds become dark ones; lines and words are as clear on the dark ground as on white."""
    tone, ground = np.array(to_rgb(colour)), np.array(to_rgb(DARK))
    if luminance(tone) > 0.8:  # white, and stripes that are nearly white
        return str(to_hex(np.clip(ground + 1 - tone, 0, 1)))
    shares = np.linspace(0.0, 1.0, 101)[:, None]
    tones = np.concatenate([shares * tone, tone + shares * (1 - tone)])
    wanted = np.clip(1.05 / (luminance(tone) + 0.05), *CONTRASTS)
    contrast = (luminance(tones) + 0.05) / (luminance(ground) + 0.05)
    return str(to_hex(tones[np.argmax(contrast >= wanted)]))


def luminance(tones: np.ndarray) -> np.ndarray:
    """WCAG's, of ``(..., 3)`` shares of red, green and blue."""
    linear = np.where(tones <= 0.04045, tones / 12.92, ((tones + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array((0.2126, 0.7152, 0.0722)))
