"""A headless Chromium, and what it says of a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
REQUIRED = "ORCHESTRATOR_REQUIRE_BROWSER"
"""Set where these tests must run: then the absence of a browser is a failure."""
WIDTHS_PX = {"phone": 360, "wide": 1200}


@dataclass
class Opened:
    """A page, and everything that went wrong on it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, and requests for anything."""

    @property
    def overflow_px(self) -> int:
        """How much wider than the window the page is."""
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(width))


Open = Callable[..., Opened]


def require(browser: str, environment: Mapping[str, str]) -> None:
    """Skip, or fail where the tests must run, when there is no browser."""
    if not browser:
        say = pytest.fail if environment.get(REQUIRED) else pytest.skip
        say("the browser tests did NOT run: no chromium on PATH; ./apt-packages.sh")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    require(CHROMIUM, os.environ)
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the pages are our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file at a width, in a scheme, with or without scripts."""
    contexts = []

    def open_(
        path: Path, width: str = "wide", *, scheme: Any = "light", runs_scripts: bool = True
    ) -> Opened:
        context = browser.new_context(
            viewport={"width": WIDTHS_PX[width], "height": 900},
            color_scheme=scheme,
            java_script_enabled=runs_scripts,
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        note, page = opened.complaints.append, opened.page
        page.on("console", lambda message: note(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: note(f"exception: {error}"))
        page.on("request", lambda request: note(f"request: {request.url}"))
        page.goto(path.as_uri())
        opened.complaints.remove(f"request: {path.as_uri()}")
        return opened

    yield open_
    for context in contexts:
        context.close()
