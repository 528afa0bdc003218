"""What Ray says of nodes; that it says so needs a session (`test_preemption`, `test_pool`)."""

from __future__ import annotations

from jobs.ray_nodes import draining_hosts


def test_without_a_session_no_host_is_about_to_go() -> None:
    assert draining_hosts() == set()
