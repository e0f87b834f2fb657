"""Someone who presses ctrl-c at the terminal of our commands; a script, because it forks.

    python tests/at_a_terminal.py RUN IMAGE NUMBER

The run is loaded once. Each of NUMBER commands, `chat` and `ask` in turn, is a forked process with a pseudo-terminal of
its own, beside two others that keep the machine busy. Prints a JSON list: of each command its verb, its exit code, and
all that it wrote.
"""

from __future__ import annotations

import codecs
import json
import os
import pty
import select
import subprocess
import sys
import time

LIMIT_S = 300
QUESTION = "what?"
BUSY = [sys.executable, "-c", "while True: pass"]


class Typist:
    """Sits at the terminal of one command."""

    def __init__(self, *words: str) -> None:
        self.seen, self._decoder = "", codecs.getincrementaldecoder("utf-8")("replace")
        self._process, self._terminal = pty.fork()
        if not self._process:
            from impresa.cli.main import main

            sys.exit(main(words))

    def read(self, until: str | None = None) -> None:
        """Read on up to a text, or to the end."""
        found, end = "", time.monotonic() + LIMIT_S
        while until is None or until not in found:
            if not select.select([self._terminal], [], [], max(end - time.monotonic(), 0))[0]:
                raise SystemExit(f"waited in vain for {until!r}; there is {found[-500:]!r}")
            try:
                new = self._decoder.decode(os.read(self._terminal, 4096)).replace("\r\n", "\n")
            except OSError:  # Linux's way to say that it was closed
                new = ""
            if not new:
                break
            found += new
            self.seen += new

    def type(self, keys: str, delay_s: float = 0.0) -> None:
        time.sleep(delay_s)
        os.write(self._terminal, keys.encode())

    def leave(self) -> tuple[int, str]:
        """The exit code, negative of a signal, and all that was seen."""
        self.read()
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1]), self.seen


def main() -> None:
    run, image, number = sys.argv[1:]
    from impresa.run_dir import load

    model = load.load_answerer(run, "cpu")
    load.load_answerer = lambda *_, **__: model
    piece = next(model.stream(image, QUESTION))
    found: list[tuple[str, int, str]] = []
    busy = [subprocess.Popen(BUSY) for _ in range(2)]
    try:
        for index in range(int(number)):
            delay_s = 0.01 * (index % 5)
            if index % 2:
                typist = Typist("ask", run, image, QUESTION)
                typist.read(piece)
                typist.type("\x03", delay_s)
                found.append(("ask", *typist.leave()))
                continue
            typist = Typist("chat", run, image)
            for _ in range(2):  # after an answer that was stopped comes another
                typist.read("> ")
                typist.type(f"{QUESTION}\r")
                typist.read(piece)
                typist.type("\x03", delay_s)
            typist.read("> ")
            typist.type("\x04")
            found.append(("chat", *typist.leave()))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    print(json.dumps(found))  # noqa: T201 - a script


if __name__ == "__main__":
    main()
