"""Memory for the tensors of a batch."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.utils.data import get_worker_info


def new_tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor whose numbers are still to be written.

    In a data worker it lies in memory that the main process reads as well, as torch's own collation has it: elsewhere
    it would be copied there when the batch is sent.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).resize_(shape)
