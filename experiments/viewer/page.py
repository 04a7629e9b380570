"""The page: one HTML file without anything outside it, which opens from a disk and asks nobody for
anything.

Its data are text that no part of the page takes for anything else: JSON with the characters of HTML
written as escapes, shown through ``textContent`` alone. A content security policy lets only the
page's own script and style work, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

MARK = "<title>Loop viewer: "
"""In the head of every page of a viewer."""
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def make_page(data: Mapping[str, Any]) -> str:
    """The whole document.

    Args:
        data: As ``content.make_content`` gives it.
    """
    style, script = _asset("viewer.css"), _asset("viewer.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    parts = {
        "TITLE": html.escape(f"Loop viewer: {data['title']}"),
        "POLICY": html.escape(policy),
        "STYLE": style,
        "DATA": embedded_json(data),
        "SCRIPT": script,
    }
    # One pass over the template alone: what is put in is never looked at for places again.
    return "".join(
        parts[piece] if place % 2 else piece
        for place, piece in enumerate(re.split("@@([A-Z]+)@@", _asset("viewer.html")))
    )


def embedded_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in: no ``<``, ``>`` or ``&``, and ASCII only."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("experiments.viewer").joinpath(name).read_text(encoding="utf-8")
