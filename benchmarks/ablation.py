"""What does `impresa ablate` cost beside the runs that it starts, and how much faster are two jobs?

    python benchmarks/ablation.py [--output ablation.json] [--seeds 4] [--quick]

One study of equal runs is trained one at a time and two at a time, in folders of their own; the runs are real
trainings of about a minute. The overhead is the time of the command without the time in which runs were training, as
a share of the latter: start, timing of the base, gaps between runs, report. The speed-up is that of the runs alone,
from the start of the first to the end of the last. Takes half an hour on two cores with four seeds; a fraction of the
runs' time is their own start.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from timing import command, store

FULL = ("trainer.max_steps=400", "trainer.logging.eval_interval=200")
QUICK = (
    *("trainer.max_steps=2", "dataset.batch_size=4", "vision_encoder.depth=1", "text_encoder.depth=1"),
    *("dataset.shapes.num_train=18", "dataset.shapes.num_val=8", "dataset.shapes.num_test=8"),
)
EVENT = re.compile(r"\[\d+/\d+\] .*: (started|finished)")


def study(folder: Path, overrides: Sequence[str], *, num_seeds: int, num_jobs: int) -> dict[str, float]:
    """Seconds of the command, and of them those from the first run's start to the last one's end."""
    words = ("shapes", "losses.type=clip,siglip", *overrides, "trainer.accelerator=cpu", "--seeds", str(num_seeds))
    begun, moments = time.monotonic(), list[float]()
    gaps, running = 0.0, 0
    process = subprocess.Popen(
        [sys.executable, "-m", "impresa", "ablate", *words, "--jobs", str(num_jobs), "--output-dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := EVENT.match(line):
            now = time.monotonic()
            if running == 0 and moments:
                gaps += now - moments[-1]
            running += 1 if found[1] == "started" else -1
            moments.append(now)
    if process.wait():
        raise SystemExit("the study has failed")
    whole, trained = time.monotonic() - begun, moments[-1] - moments[0] - gaps
    return {"whole": whole, "trained": trained, "num_runs": len(moments) / 2}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="of each of the two variants; default: %(default)s")
    given = parser.parse_args(arguments)
    overrides, num_seeds = (QUICK, 1) if given.quick else (FULL, given.seeds)
    with tempfile.TemporaryDirectory() as name:
        one, two = (study(Path(name) / f"{jobs}", overrides, num_seeds=num_seeds, num_jobs=jobs) for jobs in (1, 2))
    overhead, speed_up = one["whole"] / one["trained"] - 1, one["trained"] / two["trained"]
    print(
        f"{one['num_runs']:.0f} runs of {one['trained'] / one['num_runs']:.0f} s, one at a time: {overhead:.1%} on top"
    )
    print(f"two at a time: {speed_up:.2f} times as fast")
    store(given.output, {"one": one, "two": two, "overhead": overhead, "speed_up": speed_up})


if __name__ == "__main__":
    main()
