"""The page in a real browser: on a phone, on a handler and on paper; several tasks, panels of every
family, long names, missing controls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMEDRIVER, CHROMIUM, Browser, browse
from made_runs import make_config, make_run

from experiments.report.making import make_report

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"
)


ARMS = [
    "llm_policy",
    "llm_policy_feedback+signal=previous+every=1",
    "llm_policy_feedback+signal=previous+every=1+sign=inverted",
    "teacher_frozen",
    "teacher_feedback+signal=gae",
    "teacher_feedback+signal=gae+sign=shuffled",
    "teacher_feedback+signal=previous+every=1",
    "teacher_feedback+signal=constant+every=1+sign=random",
    "student_alone",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, generator = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for task, arms in (("go_to_red_ball_no_dists", ARMS), ("go_to_local_d4", ARMS[:2])):
        for arm in arms:
            for seed in (0, 1):
                make_run(
                    make_config(arm, seed, root / task, ARMS, f"task={task}"),
                    np.sort(generator.random(3)).tolist(),
                )
    return make_report(root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browse() as session:
        yield session


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_and_needs_nothing_else(
    page: Path, browser: Browser, width: int
) -> None:
    browser.requests()
    browser.open(page, width)
    assert browser.run("return window.innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    edges = (
        "[...document.body.querySelectorAll('section, p, a, figure, pre, .wide, nav')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert browser.run(f"return Math.max(...{edges})") <= width
    images = browser.run(
        "return [...document.querySelectorAll('figure svg')]"
        ".map(image => image.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    assert len(images) > 25 and all(w > 250 and h > 60 for w, h in images)
    assert browser.log("browser") == [] and browser.requests() == [page.resolve().as_uri()]
    assert browser.screenshot().startswith(b"\x89PNG")


def test_on_a_phone_wide_tables_scroll_in_their_own_box_and_keep_their_first_column(
    page: Path, browser: Browser
) -> None:
    browser.open(page, 360)
    found = browser.run(
        "const box = document.querySelector('.wide'); box.scrollLeft = 200; "
        "const cell = box.querySelector('tbody td');"
        "return [box.scrollWidth, box.clientWidth, box.scrollLeft, "
        "cell.getBoundingClientRect().left, box.getBoundingClientRect().left]"
    )
    content, shown, scrolled, cell, box = found
    assert content > shown and scrolled == 200 and cell == pytest.approx(box, abs=1)  # CSS pixels


def test_on_a_desk_no_table_is_cut(page: Path, browser: Browser) -> None:
    browser.open(page, 1280)
    cut = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth)"
    assert browser.run(f"return {cut}.map(box => box.innerText.slice(0, 60))") == []


def test_the_answer_stands_in_the_first_window_of_a_phone(page: Path, browser: Browser) -> None:
    browser.open(page, 360)
    assert (
        browser.run("return document.querySelector('.answer p').getBoundingClientRect().bottom")
        < 800
    )


def test_the_page_prints_on_a4(page: Path, browser: Browser) -> None:
    browser.open(page, 1280)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    # In points: 210 x 297 mm.
    boxes = {
        tuple(round(float(value)) for value in box)
        for box in re.findall(rb"/MediaBox \[([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)\]", printed)
    }
    assert boxes == {(0, 0, 595, 842)} or boxes == {(0, 0, 596, 842)}
    assert len(re.findall(rb"/Type /Page\b", printed)) < 40
