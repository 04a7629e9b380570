"""A headless Chromium behind chromedriver's plain HTTP: enough of WebDriver to look at a page, with
the standard library alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def browse() -> Iterator[Browser]:
    """Start chromedriver on a free port, and a browser behind it; both end with the block."""
    driver = subprocess.Popen(
        [str(CHROMEDRIVER), "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert driver.stdout is not None
        port = next(
            found[1]
            for line in driver.stdout
            if (found := re.search(r"started successfully on port (\d+)", line))
        )
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        root = f"http://127.0.0.1:{port}/session"
        session = f"{root}/{ask(root, {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"
        try:
            yield Browser(session)
        finally:
            ask(session, None, "DELETE")
    finally:
        driver.terminate()
        driver.wait(10)


def ask(url: str, body: Any, method: str = "POST") -> Any:
    """One command of the WebDriver protocol."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)["value"]
