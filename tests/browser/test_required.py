"""Where there is no browser: skipped on a machine that may do without, a failure in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser.conftest import REQUIRED, require


def test_without_a_browser_they_are_skipped_unless_they_must_run() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"did NOT run: no chromium on PATH"):
        require("", {})
    with pytest.raises(pytest.fail.Exception, match=r"did NOT run: no chromium on PATH"):
        require("", {REQUIRED: "1"})
    require("/usr/bin/chromium", {REQUIRED: "1"})


def test_in_ci_they_must_run() -> None:
    assert f"export {REQUIRED}=1" in Path(".ci/run").read_text(encoding="utf-8")
