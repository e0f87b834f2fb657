"""A run of a study: the command `impresa`, which stops and saves when its standard input ends.

python -m impresa.cli.child WORDS...

The study holds the other end and writes nothing: the system closes it when the study dies, however that happens, so
that no training goes on beside a study that is started again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from impresa.cli.main import main


def _stop_with_study() -> None:
    while os.read(sys.__stdin__.fileno(), 1):  # type: ignore[union-attr]
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the study behind it ignores it
    threading.Thread(target=_stop_with_study, daemon=True).start()
    sys.argv[0] = "impresa"  # for the record: what one would type
    sys.exit(main())
