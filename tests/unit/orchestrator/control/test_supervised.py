"""What executors share whose runs have one supervisor; each has more of it in its own tests."""

from __future__ import annotations

import pytest

from orchestrator.control.supervised import last_line


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("a", "a"), ("a\nb\n", "b"), (" a \n\n  \n", "a")]
)
def test_last_line(text: str, line: str) -> None:
    assert last_line(text) == line
