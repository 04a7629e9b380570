"""Single overrides of a command line, parsed by Hydra's own grammar.

Hydra's grammar wants quotes around values with ``=``, ``#``, ``~`` or letters outside ASCII, which
paths have every day. A value that the grammar refuses, and that begins like a plain word, is given
to it again in quotes, and so are the items with ``=`` of a flat list, such as the cells among
``compare.arms``. What else opens a list, a dictionary or a quotation is never guessed at: there the
grammar's reason is passed on, with the place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

SEARCH_PATH = "hydra.searchpath"
"""The one key of Hydra's own that can be set."""

_SHAPE = re.compile(
    r"\s*(?P<sign>\+\+|\+|~)?"
    r"(?P<key>[^=\s~+#'\"\[\]{}()]+(?:\[\d+\][^=\s'\"\[\]{}()]*)*)"
    r"\s*=(?P<value>.*)",
    re.DOTALL,
)
_INDEX = re.compile(r"\[(\d+)\]")
_FLAT_LIST = re.compile(r"\[([^\[\]{}]*)\]")
_COMMA = re.compile(r""",(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""")
"""One outside quotation marks."""
_TRAILING_COMMA = re.compile(r",\s*([\]}])")
_ASK_SWEEP = (
    "one run has one value here, train -m runs one after the other; write '{key}=[...]' for a list,"
    " or \"{key}='...'\" for a text with commas"
)


@dataclass(frozen=True)
class Parsed:
    """One override.

    Attributes:
        text: As it was given.
        key: With dots, also before the numbers of list items; or the name of a group.
        package: Where Hydra shall put a group (``group@package``); None where nothing is said.
        value: Plain Python.
        raw: What stands behind ``=``.
        deletes: True for ``~key``.
    """

    text: str
    key: str
    package: str | None
    value: Any
    raw: str
    deletes: bool = False


def parse_override(text: str) -> Parsed | str:
    """The override, or what is wrong with it in one line."""
    if (
        place := next((i for i, letter in enumerate(text) if not _is_text(letter)), None)
    ) is not None:
        return f"{_shown(text)}: character {place + 1} is no text: expected UTF-8 without NUL"
    shape = _SHAPE.fullmatch(text)
    tried, reasons = [text], []
    if shape:
        sign, raw = shape["sign"] or "", shape["value"].strip()
        key = _INDEX.sub(r".\1", shape["key"])
        tried = [f"{sign}{key}={raw}"]
        if raw[:1] in ("[", "{"):
            whole = raw if set("'\"") & set(raw) else _TRAILING_COMMA.sub(r"\1", raw)
            tried.append(f"{sign}{key}={whole}")
            if flat := _FLAT_LIST.fullmatch(whole):
                items = [_quoted_item(item.strip()) for item in _COMMA.split(flat[1])]
                tried.append(f"{sign}{key}=[{','.join(items)}]")
        elif raw[:1] not in ("[", "{", "'", '"'):
            tried.append(f"{sign}{key}={quote(raw)}")
    for attempt in tried:
        try:
            (found,) = OverridesParser.create().parse_overrides([attempt])
        except (HydraException, RecursionError, ValueError) as error:  # a number of 5,000 digits
            reasons.append(_reason(error, text))
            continue
        return _taken(text, found, shape["value"].strip() if shape else "")
    return f"{_shown(text)}: {reasons[0]}{_advice(text, shape)}"


def key_of(text: str) -> str:
    """The key of an override, which need not be one that can be parsed."""
    return text.partition("=")[0].strip().lstrip("+")


def quote(value: str) -> str:
    """A value in Hydra's quotes, which takes every character as it is."""
    # Only backslashes before a quotation mark are escapes to Hydra.
    escaped = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
    ending = re.search(r"\\*$", escaped)
    return f"'{escaped}{ending[0] if ending else ''}'"


def quote_if_needed(value: str) -> str:
    """A value in Hydra's quotes unless it is a plain word."""
    return (
        value if re.fullmatch(r"[a-z_][\w./-]*", value, re.ASCII | re.IGNORECASE) else quote(value)
    )


def _quoted_item(item: str) -> str:
    return quote(item) if "=" in item and item[:1] not in ("'", '"') else item


def plain(value: Any) -> Any:
    """Values of Hydra's override grammar as plain Python."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def search_path(parsed: Sequence[Parsed]) -> tuple[list[str], list[str]]:
    """The folders that ``hydra.searchpath`` adds, and what is wrong with it."""
    for one in parsed:
        if one.key == SEARCH_PATH:
            if isinstance(one.value, list) and all(isinstance(item, str) for item in one.value):
                return one.value, []
            return [], [f"{SEARCH_PATH}: expected a list of folders, got {one.value!r}"]
    return [], []


def _taken(text: str, found: Override, raw: str) -> Parsed | str:
    key = found.key_or_group
    if not key:
        return f"{_shown(text)}: no key before ="
    if key.startswith("hydra.") and key != SEARCH_PATH:
        return f"{key}: a key of Hydra's own; only {SEARCH_PATH} has a meaning here"
    if found.is_sweep_override():
        return f"{_shown(text)}: {_ASK_SWEEP.format(key=key)}"
    deletes = found.type == OverrideType.DEL
    return Parsed(text, key, found.package, plain(found.value()), raw, deletes)


def _is_text(letter: str) -> bool:
    return letter != "\0" and not "\ud800" <= letter <= "\udfff"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _reason(error: BaseException, text: str) -> str:
    """Hydra's reason in one line, with the place in the text that it points at."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = str(error).split("\nSee https")[0].split("\n")
    lines = [line for line in lines if not line.startswith("Error parsing override")]
    kept = [line.strip() for line in lines if line.strip() and line.strip() != "^"]
    caret = next((line.index("^") for line in lines if line.strip() == "^"), None)
    if "LexerNoViableAltException" in str(error) and caret is not None:
        place = caret - len("LexerNoViableAltException: ")
        letter = f" {text[place]!r}" if 0 <= place < len(text) else ""
        return f"Hydra's grammar stops at character {place + 1}{letter}"
    return f"Hydra: {'; '.join(' '.join(line.split()) for line in kept)[:300]}"


def _advice(text: str, shape: re.Match[str] | None) -> str:
    if not shape:
        return "; expected key=value" + (
            ", with a key of letters, digits, _ and ." if "=" in text else ""
        )
    shown = f"{shape['key']}={quote(shape['value'].strip())}"
    return f'; a value that is one text is quoted, also for the shell: "{shown[:200]}"'
