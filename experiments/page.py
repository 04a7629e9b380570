"""A report as one HTML file without anything outside it: readable on a phone and on paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from experiments.figures import Picture

Row = Sequence[str]

CSS = """
:root { --ink: #1b1b1b; --soft: #5c5c5c; --line: #d8d8d8; --tint: #f4f6f8; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 50rem; padding: 1rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .4rem 0 .8rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.answer { background: var(--tint); border-left: 4px solid var(--accent); padding: .7rem 1rem; }
.answer p { margin: .3rem 0; }
.answer p:first-child { font-size: 1.08rem; font-weight: 600; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { width: 100%; max-width: 40rem; height: auto; display: block; }
figcaption, .note { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { vertical-align: bottom; white-space: normal; }
pre { background: var(--tint); padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .84rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  .wide { overflow: visible; break-inside: avoid; }
  figure img { max-width: 11.5cm; }
  table { font-size: 7.5pt; }
  th, td { white-space: normal; padding-right: .35rem; }
}
"""


def page(title: str, answer: Sequence[str], sections: Sequence[str]) -> str:
    """The whole document.

    Args:
        title: Of the document, plain text.
        answer: Sentences that answer the question, plain text; the first one stands out.
        sections: HTML, as the functions below make it.
    """
    paragraphs = "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in answer)
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f'<div class="answer">\n{paragraphs}\n</div>\n{body}\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def table(header: Row, rows: Sequence[Row]) -> str:
    """A table of plain text that scrolls sideways where it is too wide."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def picture(drawn: Picture) -> str:
    """A figure with its caption."""
    data = base64.b64encode(drawn.svg.encode()).decode()
    caption = html.escape(drawn.caption)
    return f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{html.escape(text)}</p>'


def preformatted(text: str) -> str:
    """A command or a message, as it is."""
    return f"<pre>{html.escape(text)}</pre>"
