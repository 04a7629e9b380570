"""The migration page names tests that there are."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = (HERE.parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
SCRIPTS = ("a_script_of_02", "a_script_of_03")


def named() -> set[tuple[str, str]]:
    """File and part of a name: ``file: part``, and whatever parts follow it in code spans."""
    found = set()
    for file, first, rest in re.findall(r"`([a-z]+): ([\w ]+)`((?:, `\w+`)*)", PAGE):
        for part in [first, *re.findall(r"`(\w+)`", rest)]:
            parts = SCRIPTS if part == "both scripts" else (part.replace(" ", "_"),)
            found |= {(file, each) for each in parts}
    return found


def names_in(file: str) -> list[str]:
    text = (HERE / f"test_lamorel_{file}.py").read_text(encoding="utf-8")
    return re.findall(r"^def test_(\w+)\(", text, re.MULTILINE)


@pytest.mark.parametrize(("file", "part"), sorted(named()))
def test_a_named_test_is_there(file: str, part: str) -> None:
    assert part == "all" or any(part in name for name in names_in(file))


@pytest.mark.parametrize("title", ["Calls", "Keys"])
def test_every_row_names_a_test(title: str) -> None:
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    assert not [row for row in rows if not re.search(r"`\w+: |`tests/|`llm/", row.split("|")[-2])]
