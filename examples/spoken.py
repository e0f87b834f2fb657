"""Write scanned and spoken digits: `python examples/spoken.py [DIR]`.

Each of scikit-learn's 1797 handwritten digits, split as `examples/digits.py` splits them, is spoken in one of the 80
voices of espeak-ng: 1257 clips for training, 180 for validation, 360 for the test. `apt-get install espeak-ng` (Debian,
Ubuntu) or `brew install espeak-ng`, and `pip install scikit-learn`.

No voice is in two splits. Variants of a voice that are only numbered or made to sound like a robot ("steph2",
"anikaRobot") count as that voice; "m3" and "f2" are separate voices. A hash of the voice decides: 70% of them for
training, 12% for validation, 18% for the test. Accent, speed and pitch are drawn for each clip in every split.

Below DIR (default: data/spoken) it writes train.parquet, val.parquet and test.parquet with the columns `image` (PNG),
`audio` (FLAC), `caption` (three, all of them right for every clip of the digit), `label` and `voice`. Then run
`impresa train spoken`.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from digits import SPLITS, WORDS, scanned

TEMPLATES = ("the digit {}", "the number {}", "{}")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
WORDS_PER_MINUTE = (130, 200)
PITCH = (30, 70)


def voice_of(variant: str) -> str:
    """The voice that a variant of espeak-ng is made of."""
    name = variant.lower().removesuffix("robot").removeprefix("anxious")
    return re.sub(r"(?<=\w\w)\d+$", "", name) or variant.lower()


def split_of(voice: str) -> str:
    """`train`, `val` or `test`, the same everywhere and whatever other voices are installed."""
    share = int.from_bytes(hashlib.blake2b(voice.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if share < 0.7 else "val" if share < 0.82 else "test"


def variants() -> dict[str, list[str]]:
    """The variants of each split that are installed."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng, or brew install espeak-ng")
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for variant in sorted(re.findall(r"!v/(.*?)\s*(?:\(|$)", listed, re.MULTILINE)):
        found[split_of(voice_of(variant))].append(variant)
    return found


def speak(word: str, variant: str, draw: random.Random) -> bytes:
    """A FLAC file of a word in some accent, speed and pitch."""
    manner = ("-s", str(draw.randint(*WORDS_PER_MINUTE)), "-p", str(draw.randint(*PITCH)))
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        voice = f"{draw.choice(ACCENTS)}+{variant}"
        subprocess.run(["espeak-ng", "-v", voice, *manner, "-w", str(clip), word], check=True)
        samples, rate_hz = soundfile.read(clip)
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="FLAC")
    return file.getvalue()


def write(directory: Path) -> None:
    """Write the three splits below `directory`."""
    voices = variants()
    directory.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, digits = scanned(split)

        def row(number: int, split: str = split, images: list[bytes] = images, digits: list[int] = digits) -> dict:
            draw, word = random.Random(f"{split} {number}"), WORDS[digits[number]]
            variant = draw.choice(voices[split])
            texts = {"caption": [template.format(word) for template in TEMPLATES], "label": word}
            return {"image": images[number], "audio": speak(word, variant, draw), **texts, "voice": voice_of(variant)}

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            rows = list(threads.map(row, range(len(images))))
        pq.write_table(pa.Table.from_pylist(rows), directory / f"{split}.parquet")
        spoken_by = len({found["voice"] for found in rows})
        print(f"{split}: {len(rows)} clips of {spoken_by} voices in {directory / split}.parquet")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/spoken"))
