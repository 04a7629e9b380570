"""A headless Chromium behind chromedriver's plain HTTP: enough of WebDriver to look at a page, with
the standard library alone. A browser that is there but does not work skips the test.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
CHROMEDRIVER = shutil.which("chromedriver")


class Browser:
    """One session.

    Args:
        url: Of the session at chromedriver.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def open(self, page: Path, width: int, height: int = 800) -> None:
        """Show a file in a window whose page is exactly ``width`` CSS pixels wide, as on phones."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.cdp("Emulation.setDeviceMetricsOverride", **screen)
        ask(f"{self._url}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """The value of a JavaScript function's body."""
        return ask(f"{self._url}/execute/sync", {"script": script, "args": []})

    def cdp(self, command: str, **parameters: Any) -> Any:
        """A command of Chrome's own protocol."""
        return ask(f"{self._url}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was said since the last call: ``browser`` or ``performance``."""
        entries: list[dict[str, Any]] = ask(f"{self._url}/se/log", {"type": kind})
        return entries

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, those inside the page (``data:``) left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]

    def screenshot(self) -> bytes:
        """The whole page, as PNG."""
        return base64.b64decode(
            self.cdp("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        )

    def pdf(self) -> bytes:
        """The page as it prints, on the paper that it asks for."""
        return base64.b64decode(
            self.cdp("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        )


def dump(address: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Start Chromium alone: the document after its scripts have run is what it prints."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--enable-logging=stderr", f"--user-data-dir={profile}",
        "--window-size=1280,900", "--virtual-time-budget=4000", "--dump-dom", address,
    ]  # fmt: skip
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HOME": str(profile)},
        check=False,
    )


@functools.cache
def complaint() -> str | None:
    """Why Chromium does not show a page of this disk; one from a snap has a disk of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "page.html"
        page.write_text("<title>shown</title>", encoding="utf-8")
        try:
            done = dump(page.as_uri(), Path(folder))
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None if "<title>shown</title>" in done.stdout else done.stderr[-500:] or "no page"


def skip_without_browser() -> None:
    """Skip the test where Chromium does not work; tried once."""
    if complaint():
        pytest.skip(f"{CHROMIUM} shows no page: {complaint()}")


@contextlib.contextmanager
def browse() -> Iterator[Browser]:
    """Start chromedriver on a free port, and a browser behind it; both end with the block."""
    skip_without_browser()
    driver = subprocess.Popen(
        [str(CHROMEDRIVER), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert driver.stdout is not None
        ports = (
            found[1]
            for line in driver.stdout
            if (found := re.search(r"started successfully on port (\d+)", line))
        )
        if (port := next(ports, None)) is None:
            pytest.skip(f"{CHROMEDRIVER} does not start")
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        root = f"http://127.0.0.1:{port}/session"
        try:
            session = f"{root}/{ask(root, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        except urllib.error.HTTPError as error:  # as where it is made for another Chromium
            pytest.skip(f"{CHROMEDRIVER} starts no browser: {error.read().decode()[:500]}")
        try:
            yield Browser(session)
        finally:
            ask(session, None, "DELETE")
    finally:
        driver.terminate()
        driver.wait(60)


def ask(url: str, body: Any, method: str = "POST") -> Any:
    """One command of the WebDriver protocol."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=300) as answer:
        return json.load(answer)["value"]
