"""The page of each way of teaching, run as it stands from a wheel."""

from pathlib import Path

import pytest

from tests.wheel import ROOT, SHORT, last_row, page_is_run

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools")

RECIPES = sorted(path.stem for path in (ROOT / "docs" / "methods").glob("*.md"))


COMPARED = ("preferences", "skills")
"""Whose comparison is run; the others', and each ``train`` of a page but its first, are composed,
which takes a tenth of the time.
"""
MORE = {"reward_program": ["student.num_steps=2"]}
"""Words besides: a search needs at least 6 rollouts."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_page_of_a_recipe_runs_as_it_stands(
    recipe: str, installed: Path, user_folder: Path
) -> None:
    words = [] if recipe in COMPARED else ["--cfg", "job"]
    short = [*SHORT, *MORE.get(recipe, [])]
    page_is_run(
        f"methods/{recipe}.md",
        installed,
        user_folder,
        *short,
        compare_with=words,
        train_again_with=["--cfg", "job"],
    )
    alone = last_row(user_folder / "runs" / recipe)
    assert float(alone["env_steps"]) == 32
    assert any(name.startswith(f"{recipe}_") for name in alone)
    if recipe in COMPARED:
        compared = user_folder / "runs" / f"{recipe}_control"
        assert {path.name for path in compared.glob("*/seed_0")} == {"seed_0"}
        page = (compared / "report.html").read_text()
        assert recipe in page and len([*compared.glob(f"{recipe}*/seed_0/metrics.csv")]) >= 2


def test_every_recipe_has_a_page_and_every_page_a_folder() -> None:
    methods = ROOT / "lamorel_ext" / "methods"
    # the method's own page, GLAM's, its experts', what recipes share
    without_page = {"feedback", "ppo", "cloning", "pairs"}
    folders = {path.parent.name for path in methods.glob("*/__init__.py")}
    assert folders - without_page == set(RECIPES)
    listed = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"methods/{recipe}.md" in listed for recipe in RECIPES)
