"""Kill a training run at random moments, again and again, and hold it against one that nobody killed: to the bit.

python tests/soak/run.py [KILLS]

Fifty kills by default; some minutes. Moments follow from the seed that is printed.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training")]

from test_killed import EVERYTHING, same_to_the_bit  # noqa: E402

from killed import Moment, train_in_child  # noqa: E402
from tiny_run import STEPS_PER_EPOCH, tiny_experiment  # noqa: E402


def main(num_kills: int) -> None:
    """Raise an AssertionError where the two runs differ."""
    seed = int(time.time())
    print(f"seed {seed}, {num_kills} kills", flush=True)  # noqa: T201
    draw, epochs = random.Random(seed), num_kills
    # Checkpoints every 2 steps, and a kill 2 to 3 steps further on, so that the run gets on.
    config = tiny_experiment(*EVERYTHING, f"trainer.epochs={epochs}")
    with tempfile.TemporaryDirectory(prefix="impresa-soak-") as folder:
        straight, killed = Path(folder) / "straight", Path(folder) / "killed"
        assert train_in_child(config, straight) == 0
        step = 0
        for number in range(1, num_kills + 1):
            step = min(step + draw.choice((2, 3)), epochs * STEPS_PER_EPOCH - 3)
            moment: Moment = draw.choice(get_args(Moment))
            code = train_in_child(config, killed, (step, moment))
            assert code == -signal.SIGKILL, f"kill {number}, {moment} {step}: ended with {code}"
            print(f"{number}: {moment}, from step {step} on", flush=True)  # noqa: T201
        assert train_in_child(config, killed) == 0
        same_to_the_bit(killed, straight)
    print(f"equal to the bit after {num_kills} kills")  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
