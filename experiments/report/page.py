"""A report as one HTML file without anything outside it: readable on a phone and on paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.report.figures import Picture
from experiments.report.inline import dark_colours, inlined
from experiments.report.results import distinct

Row = Sequence[str]

_HERE = Path(__file__).parent
CSS = (_HERE / "page.css").read_text(encoding="utf-8")
_HEADING = r'<section id="([^"]*)">\n<h2>(.*?)</h2>'


def _breaking(text: str) -> Markup:
    """Text whose words may be broken after slashes and the like."""
    return Markup(re.sub(r"([/+_,])", r"\1<wbr>", str(escape(text))))


def _parts() -> Any:
    """The macros of page.html."""
    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["breaking"] = _breaking
    return made.get_template("page.html").module


_PARTS = _parts()


def page(
    title: str, answer: Sequence[str], sections: Sequence[str], warnings: Sequence[str] = ()
) -> str:
    """The whole document.

    Args:
        title: Of the document, plain text.
        answer: Sentences that answer the question, plain text; the first one stands out.
        sections: HTML, as the functions below make it.
        warnings: What a reader must know before believing the answer; stands right below its first
            sentence.
    """
    body = "\n".join(_apart(sections))
    return str(
        _PARTS.document(
            title,
            answer,
            warnings,
            _contents(body),
            Markup(body),
            Markup(CSS),
            Markup(dark_colours(body)),
        )
    )


def _apart(sections: Sequence[str]) -> list[str]:
    """The sections, none in the place of another one, as names of two tasks may be alike in small
    letters and digits.
    """
    places = [found[1] if (found := re.match(_HEADING, text)) else "" for text in sections]
    return [
        text.replace(f'<section id="{place}">', f'<section id="{own}">', 1)
        for text, place, own in zip(sections, places, distinct(places, "-{}"), strict=True)
    ]


def _contents(body: str) -> dict[str, list[tuple[str, Markup]]]:
    """Places and headings of the sections; those of one task stand together behind its name."""
    groups: dict[str, list[tuple[str, Markup]]] = {}
    for place, heading in re.findall(_HEADING, body):
        group, separator, rest = heading.partition(": ")
        # The headings were escaped when their sections were made.
        words = Markup(rest if separator else heading)
        groups.setdefault(Markup(group) if separator else "", []).append((place, words))
    return groups


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return str(_PARTS.section(slug(title), title, [Markup(part) for part in parts]))


def slug(text: str) -> str:
    """Small letters, digits and hyphens: for links and file names."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def warning(lines: Sequence[str]) -> str:
    """What must not be overlooked; the first line stands out."""
    return str(_PARTS.warning(lines[0], lines[1:]))


def table(header: Row, rows: Sequence[Row], csv_name: str = "") -> str:
    """A table of plain text that scrolls sideways where it is too wide; its first column stays, and
    its words may break at slashes.

    Args:
        header: Of its columns.
        rows: Each with a cell per column.
        csv_name: The file of ``tables/`` that has its numbers in full, which it links; "" for none.
    """
    source = link(f"tables/{csv_name}.csv", f"{csv_name}.csv") if csv_name else ""
    return str(_PARTS.table(header, rows, Markup(source)))


def subheading(title: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(title)}</h3>"


def picture(drawn: Picture) -> str:
    """A figure with its caption; its panels stand side by side where there is room."""
    name = slug(drawn.name)
    if len(drawn.parts) < 2:
        panels = [inlined(drawn.svg, name, drawn.caption)]
    else:
        panels = [
            inlined(svg, f"{name}-{number}", f"{title}: {drawn.caption}")
            for number, (title, svg) in enumerate(drawn.parts, start=1)
        ]
    return str(_PARTS.figure([Markup(panel) for panel in panels], drawn.caption))


def link(target: str, text: str) -> str:
    """A link to a file beside the page."""
    return str(_PARTS.link(target, text))


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{escape(text)}</p>'


def preformatted(text: str) -> str:
    """A command or a message, as it is."""
    return f"<pre>{escape(text)}</pre>"
