"""Headless Chromium with a page of qgisd in it."""

import base64
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support import MARK, eventually, marked

#: Besides being headless: nothing of Google's is asked for, and root has no sandbox.
_FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
    "--disable-dev-shm-usage", "--force-device-scale-factor=1", "--hide-scrollbars",
    "--lang=en-GB",
)  # fmt: skip


class Browser:
    """One window. Everything is looked up by what a person sees: text, role, label."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver = driver
        self.base = base

    def open(self, fragment: str = "#/") -> None:
        """The page, afresh."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.base}/ui/{fragment}")

    def go(self, fragment: str) -> None:
        """Another part of the page that is open."""
        self.driver.execute_script("location.hash = arguments[0]", fragment)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str = "body") -> str:
        """What is to be seen of the first match, "" without one."""
        found = self.all(selector)
        script = "return arguments[0].checkVisibility() ? arguments[0].innerText : ''"
        return str(self.run(script, found[0])) if found else ""

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def sees(self, text: str, selector: str = "body", timeout: float = 20) -> None:
        """Wait for a text."""
        eventually(lambda: text in self.text(selector), timeout=timeout, period=0.1)

    def button(self, label: str, within: str = "body") -> WebElement:
        """Wait for a button that can be pressed, by its accessible name."""

        def find() -> WebElement | None:
            for button in self.all(f"{within} button"):
                with contextlib.suppress(StaleElementReferenceException):
                    if button.accessible_name == label and button.is_displayed():
                        return button
            return None

        found: WebElement = eventually(find, timeout=20, period=0.1)
        return found

    def press(self, label: str, within: str = "body") -> None:
        """Press a button; once more, if the page replaced it at that moment."""

        def pressed() -> bool:
            try:
                self.button(label, within).click()
            except StaleElementReferenceException:
                return False
            return True

        eventually(pressed)

    def prefer(self, scheme: str) -> None:
        """ "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """Of the viewport, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(
            self.run(
                "const root = document.scrollingElement;"
                "return Math.max(root.scrollWidth, document.body.scrollWidth) - root.clientWidth"
            )
        )

    def picture(self, path: Path) -> bytes:
        """A screenshot of the window."""
        data = base64.b64decode(self.driver.get_screenshot_as_base64())
        path.write_bytes(data)
        return data

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call: scripts, policy, failed loads."""
        return [
            str(entry["message"])
            for entry in self.driver.get_log("browser")  # type: ignore[no-untyped-call]
            if entry["level"] in ("SEVERE", "WARNING")
        ]


@contextlib.contextmanager
def browser(base: str, chromium: str, chromedriver: str) -> Iterator[Browser]:
    """A browser of its own profile; gone with all its processes and files at the end."""
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tempfile.mkdtemp(prefix="qgisd-test-browser-")
    for flag in (*_FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    mark = uuid.uuid4().hex
    driver = webdriver.Chrome(options, Service(chromedriver, env=os.environ | {MARK: mark}))
    assert marked(mark), "the browser does not inherit the mark, so what is left is not found"
    try:
        yield Browser(driver, base)
    finally:
        driver.quit()
        eventually(lambda: not marked(mark))
        shutil.rmtree(profile)
