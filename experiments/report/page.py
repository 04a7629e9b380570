"""A report as one HTML file without anything outside it: readable on a phone and on paper."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from experiments.report.figures import Picture
from experiments.report.inline import dark_colours, inlined

Row = Sequence[str]

CSS = """
:root { --ink: #1b1b1b; --soft: #5c5c5c; --line: #dcdfe3; --tint: #f4f6f8; --accent: #0072B2; --alarm: #B3400A;
        --page: #fff; --warm: #fdf1ea; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a9b2bb; --line: #3a434c; --tint: #20272e; --accent: #6cb8e6; --alarm: #f0905a;
          --page: #14191e; --warm: #35241a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem 1rem 3rem; color: var(--ink); background: var(--page); overflow-wrap: break-word;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .2rem 0 .9rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; line-height: 1.25; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, figcaption, nav, .answer { max-width: 46rem; }
.answer { background: var(--tint); border-left: 4px solid var(--accent); padding: .7rem 1rem; border-radius: 0 4px 4px 0; }
.answer p { margin: .4rem 0; }
.answer p:first-child { font-size: 1.1rem; line-height: 1.4; font-weight: 600; }
.alarm { background: var(--warm); border-left: 4px solid var(--alarm); padding: .5rem 1rem; margin: .6rem 0; max-width: 46rem; font-size: .93rem; }
.answer p.alarm { margin: .6rem -1rem .6rem calc(-1rem - 4px); }
nav { margin: 1rem 0 0; font-size: .9rem; line-height: 1.8; }
nav p { margin: .2rem 0; }
nav a { color: var(--accent); text-decoration: none; margin-right: .9em; }
nav a:hover, nav a:focus { text-decoration: underline; }
figure { margin: 1.1rem 0 1.6rem; break-inside: avoid; }
figure svg { width: 100%; max-width: 34rem; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.values circle:hover { stroke: var(--ink); }
figure .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .6rem 1.2rem; }
figure .panels svg { max-width: none; }
figcaption, .note { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
a { color: var(--accent); }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; min-width: 9rem; position: sticky; left: 0; background: var(--page); }
tbody tr:hover td { background: var(--tint); }
th { vertical-align: bottom; white-space: normal; min-width: 4.5em; color: var(--soft); font-weight: 600; line-height: 1.25; }
pre { background: var(--tint); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .84rem; }
@media (max-width: 40rem) {
  td { white-space: nowrap; }
  body { padding: .8rem .8rem 2rem; }
  h1 { font-size: 1.3rem; }
  td:first-child, th:first-child { white-space: normal; min-width: 7.5rem; max-width: 9.5rem; padding-right: .5rem; }
  wbr { display: inline; }
  .answer { padding: .5rem .8rem; }
  .answer p.alarm { margin: .5rem -.8rem .5rem calc(-.8rem - 4px); padding: .5rem .8rem; }
}
@page { size: A4; margin: 15mm 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h1 { font-size: 16pt; } h2 { font-size: 12.5pt; margin-top: 1.4rem; break-after: avoid; } h3 { break-after: avoid; }
  nav { display: none; }
  .answer, .alarm { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  p, figcaption, .answer { max-width: none; }
  tr { break-inside: avoid; }
  .wide { overflow: visible; }
  figure svg { max-width: 12cm; }
  figure .panels { grid-template-columns: 1fr 1fr; }
  table { font-size: 7pt; width: 100%; }
  wbr { display: inline; }
  th, td { white-space: normal; padding: .15rem .5rem .15rem 0; min-width: 0; }
  th:first-child, td:first-child { position: static; }
}
"""  # noqa: E501


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
    paragraphs = [f"<p>{html.escape(sentence)}</p>" for sentence in answer]
    alarms = [f'<p class="alarm" role="note">{html.escape(sentence)}</p>' for sentence in warnings]
    first_lines = "\n".join([*paragraphs[:1], *alarms, *paragraphs[1:]])
    body = "\n".join(sections)
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark_colours(body)} }} }}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'  # noqa: E501
        f"<title>{html.escape(title)}</title>\n<style>{CSS}{dark}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
        f'<div class="answer">\n{first_lines}\n</div>\n<nav aria-label="contents">\n{_contents(body)}\n</nav>\n{body}\n</main>\n</body>\n</html>\n'  # noqa: E501
    )


def _contents(body: str) -> str:
    """Links to the sections; those of one task stand together in a line behind its name."""
    groups: dict[str, list[str]] = {}
    for place, heading in re.findall(_HEADING, body):
        group, separator, rest = heading.partition(": ")
        groups.setdefault(group if separator else "", []).append(
            f'<a href="#{place}">{rest if separator else heading}</a>'
        )
    return "\n".join(
        f"<p>{f'<b>{group}:</b> ' if group else ''}{' '.join(links)}</p>"
        for group, links in groups.items()
    )


_HEADING = r'<section id="([^"]*)">\n<h2>(.*?)</h2>'


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return (
        f'<section id="{slug(title)}">\n<h2>{html.escape(title)}</h2>\n'
        + "\n".join(parts)
        + "\n</section>"
    )


def slug(text: str) -> str:
    """Small letters, digits and hyphens: for links and file names."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def warning(lines: Sequence[str]) -> str:
    """What must not be overlooked; the first line stands out."""
    first, *others = (html.escape(line) for line in lines)
    return f'<div class="alarm" role="note"><strong>{first}</strong>{"".join(f"<br>{line}" for line in others)}</div>'  # noqa: E501


def table(header: Row, rows: Sequence[Row], csv_name: str = "") -> str:
    """A table of plain text that scrolls sideways where it is too wide; its first column stays, and
    its words may break at slashes.

    Args:
        header: Of its columns.
        rows: Each with a cell per column.
        csv_name: The file of ``tables/`` that has its numbers in full, which it links; "" for none.
    """
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    lines = "\n".join(
        "<tr>"
        + "".join(f"<td>{_cell(cell, first=not i)}</td>" for i, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    source = link(f"tables/{csv_name}.csv", f"{csv_name}.csv") if csv_name else ""
    return f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>{source}'  # noqa: E501


def _cell(text: str, first: bool) -> str:
    escaped = html.escape(text)
    return re.sub(r"([/+_,])", r"\1<wbr>", escaped) if first else escaped


def subheading(title: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(title)}</h3>"


def picture(drawn: Picture) -> str:
    """A figure with its caption; its panels stand side by side where there is room."""
    caption, name = html.escape(drawn.caption), slug(drawn.name)
    if len(drawn.parts) < 2:
        whole = inlined(drawn.svg, name, drawn.caption)
        return f"<figure>{whole}<figcaption>{caption}</figcaption></figure>"
    panels = "\n".join(
        inlined(svg, f"{name}-{number}", f"{title}: {drawn.caption}")
        for number, (title, svg) in enumerate(drawn.parts, start=1)
    )
    return (
        f'<figure><div class="panels">\n{panels}\n</div><figcaption>{caption}</figcaption></figure>'
    )


def link(target: str, text: str) -> str:
    """A link to a file beside the page."""
    return f'<p><a href="{html.escape(target)}">{html.escape(text)}</a></p>'


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{html.escape(text)}</p>'


def preformatted(text: str) -> str:
    """A command or a message, as it is."""
    return f"<pre>{html.escape(text)}</pre>"
