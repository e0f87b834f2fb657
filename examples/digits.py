"""Write scikit-learn's handwritten digits as images with captions: `python examples/digits.py [DIR]`.

The 1797 images (8 x 8, Alpaydin and Kaynak 1998, UCI) are split by their order in the file into 1257 for training, 180
for validation and 360 for the test. The file is mostly ordered by writer, so the test digits come from other hands.
For each split there is a parquet file (columns `image`, `caption`, `label`, `question`, `answer`, `kind`) and a folder
of PNG files with the same texts in `metadata.jsonl`, below DIR (default: data/digits). Then run `impresa train digits`.
scikit-learn is needed (`pip install scikit-learn`).

Each image is asked about in four ways: which digit it is, whether it is even or odd, whether it is larger than five,
and which number comes next (ten after nine). Always giving a question's most frequent answer is right for about a third
of them.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {}",
    "the digit {}",
    "a scan of the number {}",
    "somebody wrote a {}",
    "a small picture of the numeral {}",
    "{} in grey ink",
)
QUESTIONS = {
    "digit": "which digit is this?",
    "parity": "is this digit even or odd?",
    "size": "is this digit larger than five?",
    "next": "which number comes next?",
}
SPLITS = {"train": slice(0, 1257), "val": slice(1257, 1437), "test": slice(1437, 1797)}


def png(pixels: np.ndarray) -> bytes:
    """An 8 x 8 array of ink from 0 to 16 as a greyscale PNG."""
    buffer = io.BytesIO()
    Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def answers(digit: int) -> dict[str, str]:
    """The answer to each of `QUESTIONS`."""
    return {
        "digit": WORDS[digit],
        "parity": "odd" if digit % 2 else "even",
        "size": "yes" if digit > 5 else "no",
        "next": (*WORDS, "ten")[digit + 1],
    }


def scanned(split: str) -> tuple[list[bytes], list[int]]:
    """The images of a split as PNG files, and the digits that they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("scikit-learn is not installed: pip install scikit-learn") from None
    digits, rows = load_digits(), SPLITS[split]
    return [png(pixels) for pixels in digits.images[rows]], digits.target[rows].tolist()


def write(directory: Path) -> None:
    """Write the three splits in both layouts below `directory`."""
    for split in SPLITS:
        images, targets = scanned(split)
        labels = [WORDS[target] for target in targets]
        captions = [[template.format(label) for template in TEMPLATES] for label in labels]
        columns = {
            "caption": captions,
            "label": labels,
            "question": [list(QUESTIONS.values())] * len(labels),
            "answer": [list(answers(target).values()) for target in targets],
            "kind": [list(QUESTIONS)] * len(labels),
        }
        folder = directory / "folders" / split
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": images, **columns}), directory / f"{split}.parquet")
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for index, image in enumerate(images):
                name = f"{index:04d}.png"
                (folder / name).write_bytes(image)
                row = {column: values[index] for column, values in columns.items()}
                lines.write(json.dumps({"image": name, **row}) + "\n")
        print(f"{split}: {len(images)} images in {directory / split}.parquet and {folder}")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/digits"))
