"""What Ray's monitor says, in one line."""

from __future__ import annotations

import pytest

from jobs.speech.node_memory import whose_memory

MESSAGE = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node \
(IP: 10.0.0.7, ID: 87d5c9) was 3.44GB used / 3.54GB limit (0.97)
OOM kill reason: Memory usage 3669794816B exceeded threshold of 3605530272B
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Task: job ID=01000000, lease ID=00, task name=_Host.work, \
required resources={CPU: 1}, pid=18320, actual memory used=0.04GB, worker ID=65)
]
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
18046\t0.59\t/usr/bin/neighbour --of ours...
18320\t0.04\tray::_Host.work
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io
"""
NODE = "node 10.0.0.7 ran low on memory: 3.44GB of 3.54GB used"
WORKER = f"{NODE}, 0.04GB by the worker that Ray ended"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (MESSAGE, f"{WORKER}, most by process 18046, 0.59GB: /usr/bin/neighbour --of ours..."),
        (MESSAGE.replace("18046", "18320", 1), WORKER),
        (MESSAGE.partition("Top 10")[0], WORKER),
        (MESSAGE.partition("OOM kill")[0], NODE),
        ("worded otherwise\nfor ever", "worded otherwise"),
        ("", ""),
    ],
)
def test_whose_memory_it_was(message: str, says: str) -> None:
    assert whose_memory(message) == says
