"""Two processes, or more, joined by gloo, as a launcher would start them."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed

PATIENCE_S = 120


def in_two_processes(
    work: Callable[..., Any],
    folder: Path,
    *arguments: Any,
    start: Literal["spawn", "fork"] = "spawn",
    count: int = 2,
) -> list[Any]:
    """What `work(rank, *arguments)` returns in each of two processes of one group.

    Args:
        work: a function of a module; its result is of tensors and plain values.
        folder: an empty folder for the rendezvous and the results. A file, unlike a free port, cannot be taken by
            another process before the two meet.
        arguments: what both are given besides their rank.
        start: "fork" where what is imported here need not be imported there.
        count: of the processes.
    """
    context = multiprocessing.get_context(start)
    processes = [context.Process(target=_child, args=(work, r, count, folder, *arguments)) for r in range(count)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=PATIENCE_S)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(count)]


def _child(work: Callable[..., Any], rank: int, count: int, folder: Path, *arguments: Any) -> None:
    code = 1
    try:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=PATIENCE_S),
        )
        torch.save(work(rank, *arguments), folder / f"rank{rank}.pt")
        distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # leaving the usual way aborts now and then in gloo's threads
