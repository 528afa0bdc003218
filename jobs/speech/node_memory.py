"""Whose memory it was when Ray's monitor ended a worker: what its message says, in one line.

Ray ends workers when a *node* runs low, whoever uses its memory; the worker is seldom to blame.
The words are those of Ray 2.60 (src/ray/raylet/worker_killing_policy.cc, node_manager.cc).
"""

from __future__ import annotations

import re

_NODE = re.compile(r"Memory on the node \(IP: ([^,]+), ID: \w+\) was (\S+) used / (\S+) limit")
_WORKER = re.compile(r"Selected to kill: .*?\bpid=(\d+), actual memory used=(\S+?),")
_TOP = re.compile(r"Top \d+ memory users: PID\tMEM\(GB\)\tCOMMAND\n(\d+)\t(\S+)\t(.+)")


def whose_memory(message: str) -> str:
    """Which node ran low, how much the worker had, and which process had the most.

    The first line of a message that is worded otherwise.
    """
    node, worker, top = (p.search(message) for p in (_NODE, _WORKER, _TOP))
    if not node:
        return message.strip().partition("\n")[0]
    said = f"node {node[1]} ran low on memory: {node[2]} of {node[3]} used"
    if worker:
        said += f", {worker[2]} by the worker that Ray ended"
    if top and not (worker and top[1] == worker[1]):
        said += f", most by process {top[1]}, {top[2]}GB: {top[3]}"
    return said
