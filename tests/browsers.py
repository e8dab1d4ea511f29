"""Open pages in a real browser: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import WebDriverException

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    # A window behind another one keeps its timers and animation frames.
    *("--disable-background-timer-throttling", "--disable-renderer-backgrounding"),
    "--disable-backgrounding-occluded-windows",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]
# Runs in each document before its own scripts. Frames report to the page they are in.
RECORD_ERRORS = """{
  const errors = top.errorsOfConsole ??= []
  const log = console.error
  console.error = (...parts) => { errors.push(parts.join(" ")); log(...parts) }
  addEventListener("error", event => errors.push(event.message))
  addEventListener("unhandledrejection", event => errors.push(String(event.reason)))
}"""
LOADING_SECONDS = 60  # A busy machine may take long to load a page.
POLL_SECONDS = 0.02


class Browser:
    """A running Chromium with its own profile, and the messages that its windows have logged.

    Attributes
    ----------
    driver : selenium.webdriver.Chrome
        Selenium's driver, for everything that a `Page` does not offer.
    profile : Path
        The folder of the profile, which is removed at the end.
    """

    def __init__(self) -> None:
        if not CHROMIUM.exists() or not DRIVER.exists():
            raise FileNotFoundError(f"{CHROMIUM} or {DRIVER} is missing. Run `make test-site` as root once.")
        self.profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for option in [*OPTIONS, f"--user-data-dir={self.profile}"]:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        try:
            service = webdriver.ChromeService(executable_path=str(DRIVER))
            self.driver = webdriver.Chrome(options=options, service=service)
        except BaseException:
            shutil.rmtree(self.profile, ignore_errors=True)
            raise
        self.driver.set_page_load_timeout(LOADING_SECONDS)
        self.driver.set_script_timeout(LOADING_SECONDS)
        self._first_window = self.driver.current_window_handle
        self._events: dict[str, list[dict[str, Any]]] = {}

    def open(self, url: str | Path, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a window with a page, and return it once the page is loaded."""
        self.driver.switch_to.window(self._first_window)
        self.driver.switch_to.new_window("window")
        page = Page(self, self.driver.current_window_handle)
        page.command("Page.addScriptToEvaluateOnNewDocument", source=RECORD_ERRORS)
        page.resize(width, height)
        page.set_dark(dark)
        page.go_to(url)
        return page

    def events(self, window: str) -> list[dict[str, Any]]:
        """Return the events of the DevTools protocol that a window has sent, oldest first."""
        entries: list[dict[str, Any]] = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        for entry in entries:
            message = json.loads(entry["message"])
            self._events.setdefault(message["webview"], []).append(message["message"])
        return self._events.setdefault(window, [])

    def close(self) -> None:
        """End Chromium and its driver, and remove the profile."""
        with contextlib.suppress(WebDriverException):
            self.driver.quit()
        deadline = time.monotonic() + LOADING_SECONDS
        while self.profile.exists() and time.monotonic() < deadline:
            shutil.rmtree(self.profile, ignore_errors=True)  # Fails while Chromium still writes into it.


class Page:
    """A window of a browser with a page."""

    def __init__(self, browser: Browser, window: str) -> None:
        self.browser = browser
        self.window = window

    @property
    def driver(self) -> webdriver.Chrome:
        """Selenium's driver, with this window as the current one."""
        driver = self.browser.driver
        driver.switch_to.window(self.window)
        return driver

    def go_to(self, url: str | Path) -> None:
        """Load an address or a file, and forget the events of the previous page."""
        address = url.absolute().as_uri() if isinstance(url, Path) else url
        driver = self.driver
        self.browser.events(self.window).clear()
        driver.get(address)

    def reload(self) -> None:
        """Load the page again."""
        self.go_to(self.url)

    @property
    def url(self) -> str:
        """The address that the window shows."""
        return self.driver.current_url

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a JavaScript function with `arguments`, and return what it returns.

        A promise is awaited.
        """
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, expression: str, *arguments: Any, timeout: float = 20.0) -> Any:
        """Block until a JavaScript expression is truthy, and return its value.

        Raises TimeoutError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not (value := self.run(f"return {expression}", *arguments)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} was not truthy within {timeout:g} s on {self.url}")
            time.sleep(POLL_SECONDS)
        return value

    def text(self, selector: str) -> str:
        """Return the visible text of the first element that matches a CSS selector, once there is one."""
        return str(self.wait_for("document.querySelector(arguments[0])", selector).text)

    def count(self, selector: str) -> int:
        """Return the number of elements that match a CSS selector."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def click(self, selector: str) -> None:
        """Click on the first element that matches a CSS selector, once there is one."""
        self.wait_for("document.querySelector(arguments[0])", selector).click()

    def type_text(self, selector: str, text: str) -> None:
        """Replace the text of an input field, as if typed."""
        field = self.wait_for("document.querySelector(arguments[0])", selector)
        field.clear()
        field.send_keys(text)

    def resize(self, width: int, height: int = 900) -> None:
        """Set the size of the page in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def set_dark(self, dark: bool) -> None:
        """Let the system prefer dark or light colours."""
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[colours])

    def screenshot(self, path: str | Path | None = None, whole: bool = False) -> bytes:
        """Return a picture of the window, or of the whole page, as PNG, and write it to `path`."""
        options: dict[str, Any] = {"format": "png"}
        if whole:
            size = self.command("Page.getLayoutMetrics")["cssContentSize"]
            options |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        picture = base64.b64decode(self.command("Page.captureScreenshot", **options)["data"])
        if path is not None:
            Path(path).write_bytes(picture)
        return picture

    def requests(self) -> list[str]:
        """Return the addresses that the page has requested since it was opened."""
        events = self.browser.events(self.window)
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [str(request["request"]["url"]) for request in sent]

    def requested_hosts(self) -> set[str]:
        """Return the hosts other than this machine that the page has requested anything from."""
        hosts = {urlsplit(url).hostname for url in self.requests() if not url.startswith(("data:", "blob:"))}
        return {host for host in hosts if host} - {"localhost", "127.0.0.1"}

    def errors(self) -> list[str]:
        """Return the errors that the console has shown since the page was opened."""
        failed = []
        urls = dict[str, str]()
        for event in self.browser.events(self.window):
            params = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                urls[params["requestId"]] = params["request"]["url"]
            elif event["method"] == "Network.loadingFailed" and not params.get("canceled"):
                failed.append(f"{params['errorText']} {urls.get(params['requestId'], '')}")
            elif event["method"] == "Network.responseReceived" and params["response"]["status"] >= 400:
                failed.append(f"{params['response']['status']} {params['response']['url']}")
        return [*map(str, self.run("return window.errorsOfConsole || []")), *failed]

    def command(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol to this window, and return its result."""
        return dict(self.driver.execute_cdp_cmd(name, parameters) or {})

    def close(self) -> None:
        """Close the window."""
        with contextlib.suppress(WebDriverException):
            self.driver.close()
