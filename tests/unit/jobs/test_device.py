from __future__ import annotations

import torch

from jobs.device import own_device


def test_a_process_computes_where_its_tensors_can_be() -> None:
    on_it = torch.ones(2, device=own_device())
    assert on_it.is_cuda == torch.cuda.is_available()
