"""One of the processes that `launch` has started: trains, and reports an error to the launcher.

python -m impresa.training.worker CONFIG RUN_DIR new|resume COMMAND...
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from impresa.config import read_config
from impresa.errors import ImpresaError
from impresa.streams import accept_any_text
from impresa.training.processes import leave, show_notices

REPORT = "TORCHELASTIC_ERROR_FILE"
"""Environment variable with the file that torch's launcher reads after a failure."""


def main(words: list[str]) -> None:
    """Train with the launcher's arguments; never returns."""
    config, run_dir, how, *command = words
    threading.Thread(target=_leave_with_launcher, args=(os.getppid(),), daemon=True).start()
    accept_any_text()
    show_notices()
    try:
        from impresa.training.run import train

        train(read_config(Path(config)), Path(run_dir), command=command, resume=how == "resume")
    except KeyboardInterrupt:
        pass  # the launcher sees that the run has not finished
    except ImpresaError as error:
        _report(type(error).__name__, error.lines)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="impresa-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        line = " ".join(str(error).split()) or "no message"
        _report(None, [f"{type(error).__name__}: {line} (traceback in {file.name})"])
    leave(0)


def _report(kind: str | None, lines: list[str] | tuple[str, ...]) -> None:
    """Report why this process ends: the class of an `ImpresaError` (None for others), and its lines."""
    report = {"message": lines[0], "timestamp": int(time.time()), "time": time.time(), "kind": kind, "lines": lines}
    Path(os.environ[REPORT]).write_text(json.dumps(report), encoding="utf-8")
    leave(1)


def _leave_with_launcher(launcher: int) -> None:
    """End this process when the launcher has been killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
