"""Walk through a report or a viewer in a headless browser, as a reader with a keyboard would:
``python tests/experiments/check_pages.py PAGE [AXE]``, by hand, with chromium, chromedriver and,
if one likes, the path of axe-core's ``axe.min.js``. Not part of the tests: it takes a minute.

Says, at 390 and 1280 px, light and dark: what sticks out, what the console heard, what axe finds
serious, which controls Tab does not reach or shows no focus on; and writes pictures and what is
printed to the working folder.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

from browser import Browser, browse

CONTROLS = "a[href], button, select, input, summary, [tabindex='0']"
REACHABLE = f"""return [...document.querySelectorAll("{CONTROLS}")].filter((one) =>
  !one.disabled && one.getClientRects().length &&
  getComputedStyle(one).visibility !== "hidden").length"""
FOCUSED = """const one = document.activeElement, style = getComputedStyle(one);
if (one === document.body) return null;
const all = [...document.querySelectorAll("*")];
const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
return [all.indexOf(one), shown,
  one.id || one.tagName + ": " + one.textContent.trim().slice(0, 40)];"""
AXE = """const found = await axe.run(document);
return [["passes", "", found.passes.length, [found.incomplete.map((one) => one.id).join()]]].concat(
  found.violations.map((one) => [one.impact, one.id, one.nodes.length,
    one.nodes.slice(0, 3).map((node) =>
      node.target.join(" ") + " " + (node.failureSummary ?? "").slice(0, 150))]));"""


def press(browser: Browser, key: str, code: int, text: str = "") -> None:
    """A key that goes down and up, as a keyboard sends it."""
    event = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    browser.cdp("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
    browser.cdp("Input.dispatchKeyEvent", type="keyUp", **event)


def tab_through(browser: Browser) -> tuple[int, list[str], list[str]]:
    """Controls there are, those that Tab came to, and those that did not show it."""
    there = browser.run(REACHABLE)
    seen: dict[int, str] = {}
    hidden = []
    for _ in range(there + 10):
        press(browser, "Tab", 9)
        at = browser.run(FOCUSED)
        if at is None:  # past the last one; the next is the first
            continue
        if at[0] in seen:
            break
        seen[at[0]] = at[2]
        hidden += [] if at[1] else [at[2]]
    return there, list(seen.values()), hidden


def check(browser: Browser, page: Path, width: int, theme: str, axe: str) -> None:
    """All of it, in one window; a viewer also with two sides."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.cdp("Emulation.setEmulatedMedia", features=features)
    browser.open(page, width)
    look(browser, f"{page.stem}_{width}_{theme}", axe, theme == "light")
    if browser.run("document.getElementById('beside')?.focus(); return document.activeElement.id"):
        press(browser, "Enter", 13, "\r")
        look(browser, f"{page.stem}_{width}_{theme}_two", axe, theme == "light")


def look(browser: Browser, name: str, axe: str, with_keys: bool) -> None:
    """The page as it now is."""
    outside = browser.run("return document.documentElement.scrollWidth - window.innerWidth")
    print(f"{name}: {max(0, outside)} px stick out; console: {browser.log('browser')}")
    if axe:
        found: Any = browser.cdp(
            "Runtime.evaluate",
            expression=f"{axe}; (async () => {{ {AXE} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        for impact, rule, count, where in found["result"].get("value", [[str(found), "", 0, []]]):
            print(f"  axe: {impact}: {rule}, {count} times: {where}")
    if with_keys:
        there, reached, hidden = tab_through(browser)
        print(f"  Tab reaches {len(reached)} of {there} controls; no focus seen on {hidden}")
    Path(f"{name}.png").write_bytes(browser.screenshot())


def main(page: Path, axe: Path | None = None) -> None:
    """Check a page and print what was found."""
    script = axe.read_text(encoding="utf-8") if axe else ""
    with browse() as browser:
        for width in (390, 1280):
            for theme in ("light", "dark"):
                check(browser, page, width, theme, script)
        printed = browser.cdp("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        Path(f"{page.stem}.pdf").write_bytes(base64.b64decode(printed["data"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
