"""Damage files at random and see that nothing but one clear line comes of it.

    python tests/fuzzing/run.py [--mutations 1000] [--seed 0] [--of data] [--only PART-OF-NAME]

`--of data` leaves out the files of runs: 360 mutations of each of its kinds are 10,000 in all, in two minutes. Each
kind of file gets so many mutations, in a process of its own that may take 1 GiB of memory above what it has at its
start, and 15 seconds for each. A find is an exception that is no `ImpresaError`, or one that is told in several lines,
a crash, a hang, or memory above the limit. It is printed with target and number:
`--only TARGET --first NUMBER --mutations 1` does it again.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

sys.path[:0] = [str(Path(__file__).parents[1])]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}

import torch

from fuzzing.targets import Target, data_targets, run_targets
from impresa.errors import ImpresaError

SECONDS = 15
LIMIT = 2**30


@dataclass(frozen=True)
class Find:
    """Something that must not happen."""

    target: str
    number: int
    kind: str
    """`raw`, `crash`, `hang`, `memory`, or `lines` where one is told in several or in none."""
    detail: str

    def __str__(self) -> str:
        return f"{self.target} {self.number}: {self.kind}: {self.detail}"


def fuzz(target: Target, seed: int, numbers: range) -> list[Find]:
    """All finds in some mutations of a target, of which each is a function of (seed, target, number)."""
    finds, first = [], numbers.start
    while first < numbers.stop:
        done, find = _part(target, seed, range(first, numbers.stop))
        finds += find
        first = done + 1
    return finds


def _part(target: Target, seed: int, numbers: range) -> tuple[int, list[Find]]:
    """Mutations until the process ends: the number of the last one, and the finds."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_worker, args=(target, seed, numbers, theirs))
    process.start()
    theirs.close()
    number, finds = numbers.start, []
    try:
        while ours.poll(SECONDS + 5 * (number == numbers.start)):
            number, kind, detail = ours.recv()
            if kind == "end":
                return numbers.stop, finds
            if kind:
                finds.append(Find(target.name, number, kind, detail))
        finds.append(Find(target.name, number, "hang", f"over {SECONDS} s"))
    except EOFError:
        process.join()
        finds.append(Find(target.name, number, "crash", f"exit code {process.exitcode}"))
    finally:
        process.kill()
        process.join()
    return number, finds


def _worker(target: Target, seed: int, numbers: range, pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    os.dup2(sys.stderr.fileno(), 2)  # where libraries in C write
    torch.set_num_threads(1)
    limit = _memory() + LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        pipe.send((number, "", ""))
        sys.setrecursionlimit(100_000)  # writing deep nesting takes more than any reader grants
        damaged = target.mutate(target.content, random.Random(f"{seed}/{target.name}/{number}"))
        sys.setrecursionlimit(1_000)
        try:
            target.use(damaged)
        except ImpresaError as error:
            if any(len(line.splitlines()) != 1 for line in error.lines):
                pipe.send((number, "lines", _last(error)))
        except MemoryError as error:
            pipe.send((number, "memory", _last(error)))
        except Exception as error:
            pipe.send((number, "raw", _last(error)))
    pipe.send((numbers.stop, "end", ""))
    pipe.close()
    os._exit(0)


def _memory() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _last(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "impresa" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{at} {type(error).__name__}: {str(error)[:160]!r}"


def all_targets(folder: Path, of: str = "all") -> list[Target]:
    found = [*data_targets(folder / "data")] if of != "runs" else []
    return found if of == "data" else [*found, *_targets_of_runs(folder)]


def _targets_of_runs(folder: Path) -> list[Target]:
    from fuzzing.targets import pretrained_run
    from tiny_run import finished_run
    from tiny_vlm import finished_vlm

    torch.set_num_threads(1)
    runs = {"alignment": finished_run(), "vqa": finished_vlm(), "pretrained": pretrained_run(folder / "pretrained")}
    return [target for name, run_dir in runs.items() for target in run_targets(name, run_dir, folder / "runs")]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--of", choices=("all", "data", "runs"), default="all")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    finds, total = list[Find](), 0
    with tempfile.TemporaryDirectory() as folder:
        for target in all_targets(Path(folder), given.of):
            if given.only not in target.name:
                continue
            start, number = monotonic(), max(1, round(given.mutations * target.share))
            new = fuzz(target, given.seed, range(given.first, given.first + number))
            print(f"{target.name}: {number} mutations, {len(new)} finds, {monotonic() - start:.0f} s", flush=True)
            for find in new[:20]:
                print(f"    {find}", flush=True)
            finds, total = finds + new, total + number
    print(f"seed {given.seed}: {total} mutations, {len(finds)} finds")
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main())
