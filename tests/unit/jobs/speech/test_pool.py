"""Which node is to blame for the deaths of a pool's actors; the pool itself needs a Ray session."""

from __future__ import annotations

from jobs.speech.pool import NodesUsed

BROKEN, SOUND = "n1", "n2"


def test_a_node_is_named_only_while_others_get_work_done() -> None:
    named: list[str] = []
    used = NodesUsed(named.append)
    for node_id, name in (("a", BROKEN), ("b", SOUND), ("c", "")):
        used.name(node_id, name)
    for _ in range(3):
        used.died("a"), used.died("b")
    assert named == [], "all die: that is no node's fault"
    used.finished("b")
    used.died("a")
    assert named == [BROKEN]
    used.died("b"), used.died("b")
    assert named == [BROKEN], "nobody else is of use"
    used.finished("a")
    used.died("b")
    assert named == [BROKEN, SOUND]
    for _ in range(3):
        used.died("c")
    assert named == [BROKEN, SOUND], "the scheduler has no name for it"
