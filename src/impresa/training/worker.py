"""One of the processes that `launch` has started: trains, and reports an error to the launcher.

python -m impresa.training.worker CONFIG RUN_DIR new|resume COMMAND...
"""

from __future__ import annotations

import json
import os
import signal
import sys
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
    heed_launcher()
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
        line = " ".join(str(error).split()) or "no message"
        _report(None, [f"{type(error).__name__}: {line}"], traceback.format_exc())
    leave(0)


def _report(kind: str | None, lines: list[str] | tuple[str, ...], trace: str = "") -> None:
    """Report why this process ends: the class of an `ImpresaError`, and its lines; for others None, and the traceback,
    which the launcher writes down if this is the failure that the others followed from."""
    now = time.time()
    report = {"message": lines[0], "timestamp": int(now), "time": now, "kind": kind, "lines": lines, "trace": trace}
    Path(os.environ[REPORT]).write_text(json.dumps(report), encoding="utf-8")
    leave(1)


def heed_launcher() -> None:
    """From now on, end this process when the launcher has been killed, or tells it to by SIGTERM because another
    process has died. A SIGTERM of anyone else is a scheduler's, which reaches all processes of a job: it is taken as
    the warning of one, for the launcher passes its own on as Ctrl-C, and a second one would be in a hurry."""
    launcher = os.getppid()
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are other threads, which inherit it
        threading.Thread(target=_heed_sigterm, args=(launcher,), daemon=True).start()
    threading.Thread(target=_leave_with_launcher, args=(launcher,), daemon=True).start()


def _heed_sigterm(launcher: int) -> None:
    # Without a time limit: `sigtimedwait` returns whatever lay in memory where the process was suspended (SIGSTOP, as
    # SLURM does) until the limit was over.
    while True:
        told = signal.sigwaitinfo({signal.SIGTERM})
        if told.si_pid == launcher:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM if told.si_pid == launcher else signal.SIGUSR1)


def _leave_with_launcher(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
