"""Stands in for `impresa train` where a test is about who starts it: it copies a finished run, or fails.

The environment says what it does: `STAND_IN_RUN` is the finished run, `STAND_IN_DIARY` a file that gets a line when it
starts and when it ends, `STAND_IN_WAIT` the seconds between, `STAND_IN_UNTIL` a file that it waits for, and
`STAND_IN_FAILS` a word of its command with which it fails with the exit code `STAND_IN_CODE`. Like the real one it
stops when its standard input ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from impresa.run_dir.lock import locked

COMMAND = (sys.executable, __file__)
_ending = threading.Lock()
"""Held while the run is written, which is not left half done."""


def watch() -> None:
    while os.read(0, 1):
        pass
    with _ending:
        os._exit(1)


def note(event: str, run_dir: Path) -> None:
    with Path(os.environ["STAND_IN_DIARY"]).open("a") as diary:
        diary.write(f"{event} {run_dir.name}\n")


def main(words: list[str]) -> None:
    run_dir = Path(words[words.index("--output-dir") + 1])
    with locked(run_dir):
        note("start", run_dir)
        time.sleep(float(os.environ.get("STAND_IN_WAIT", "0")))
        while (until := os.environ.get("STAND_IN_UNTIL")) and not Path(until).exists():
            time.sleep(0.02)
        if os.environ.get("STAND_IN_FAILS") in words:
            print("first\nlosses.type: is not what it seems; choose another", file=sys.stderr)  # noqa: T201
            sys.exit(int(os.environ.get("STAND_IN_CODE", "1")))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _ending:
            shutil.copytree(os.environ["STAND_IN_RUN"], run_dir, dirs_exist_ok=True)
            note("end", run_dir)


if __name__ == "__main__":
    threading.Thread(target=watch, daemon=True).start()
    main(sys.argv[1:])
