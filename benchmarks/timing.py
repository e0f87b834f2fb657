"""How the benchmarks here measure: peers in one process, on one thread, in turns, medians.

Machines drift by half within an hour, and memory that was just freed is cheaper to take again: only ratios within one
run mean anything, and only when the runs alternate, in an order that changes from round to round. The clock is the
process's CPU time, which on one thread is the time that passes, without what other programs take of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

Work = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What one run of some work takes."""

    seconds: float
    """Median of all runs."""
    fastest_s: float
    slowest_s: float
    peak_bytes: int
    """Most memory that the tensors made in the run took at once."""


def measure(works: Mapping[str, Work], repeats: int = 7, prepare: Work = lambda: None) -> dict[str, Cost]:
    """Cost of each work; every round runs each of them once, in an order of its own.

    Args:
        works: what to run; each leaves things as it found them, apart from what `prepare` restores.
        repeats: rounds that count, after one that does not.
        prepare: runs before every work, outside the clock.
    """
    torch.set_num_threads(1)
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        order = list(works)
        shuffle(order)
        for name in order:
            prepare()
            start = time.process_time()
            works[name]()
            seconds[name].append(time.process_time() - start)
    costs = {}
    for name, work in works.items():
        prepare()
        counted = seconds[name][1:]
        costs[name] = Cost(statistics.median(counted), min(counted), max(counted), peak_memory(work))
    return costs


def largest_difference(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> float:
    """Largest relative difference of a tensor to its counterpart; above `tolerance` there is nothing to time."""
    pairs = zip(found, expected, strict=True)
    largest = float(torch.stack([(x - y).detach().norm() / y.detach().norm() for x, y in pairs]).max())
    if not largest <= tolerance:  # NaN is not either
        raise SystemExit(f"a tensor differs by {largest:.1e} of its norm; {tolerance:.0e} is allowed")
    return largest


def peak_memory(work: Work) -> int:
    """Most bytes of tensors on the CPU, among those that `work` makes, that are held at once.

    torch's profiler reports every allocation. What a matrix multiplication packs for itself is not among them; the
    peak of the resident set, measured beside it, agrees within a MiB. Of tensors made before, it reports the end of
    those alone that were made under a profiler: with them, the peak would depend on what was measured earlier.
    """
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held: dict[int, int] = {}
    peak = now = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            held[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= held.pop(address, 0)
    return peak


def report(title: str, costs: Mapping[str, Cost], peers: Sequence[str]) -> None:
    """Print the costs, and how many times faster and smaller each is than the peers."""
    caption = "median CPU time of a run; against a peer: how many times faster, how many times less memory"
    table = Table("", "ms", "fastest, slowest", "MiB", *(f"vs {peer}" for peer in peers), title=title, caption=caption)
    for name, cost in costs.items():
        ratios = [
            f"{costs[peer].seconds / cost.seconds:.2f}, {costs[peer].peak_bytes / cost.peak_bytes:.2f}"
            for peer in peers
        ]
        spread = f"{cost.fastest_s * 1e3:.0f}, {cost.slowest_s * 1e3:.0f}"
        table.add_row(name, f"{cost.seconds * 1e3:.0f}", spread, f"{cost.peak_bytes / 2**20:.0f}", *ratios)
    Console(width=160).print(table)


def command(doc: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; the first line of `doc` says what one is for."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, its figures mean nothing")
    return parser


def store(output: Path | None, figures: Mapping[str, object]) -> None:
    """Write the figures and what they were measured on to a JSON file, if one is named."""
    if output is not None:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        output.write_text(json.dumps({**machine, **figures}, indent=2) + "\n")
