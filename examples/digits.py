"""Write scikit-learn's handwritten digits as images with captions: `python examples/digits.py [DIR]`.

The 1797 images (8 x 8, Alpaydin and Kaynak 1998, UCI) are split by their order in the file into 1257 for training, 180
for validation and 360 for the test. The file is mostly ordered by writer, so the test digits come from other hands.
For each split there is a parquet file (columns `image`, `caption`, `label`) and a folder of PNG files with the same
captions in `metadata.jsonl`, below DIR (default: data/digits). Then run `impresa train digits`. scikit-learn is needed
(`pip install scikit-learn`).
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
from sklearn.datasets import load_digits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a handwritten {}",
    "the digit {}",
    "a scan of the number {}",
    "somebody wrote a {}",
    "a small picture of the numeral {}",
    "{} in grey ink",
)
SPLITS = {"train": slice(0, 1257), "val": slice(1257, 1437), "test": slice(1437, 1797)}


def png(pixels: np.ndarray) -> bytes:
    """An 8 x 8 array of ink from 0 to 16 as a greyscale PNG."""
    buffer = io.BytesIO()
    Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(directory: Path) -> None:
    """Write the three splits in both layouts below `directory`."""
    digits = load_digits()
    for split, rows in SPLITS.items():
        images = [png(pixels) for pixels in digits.images[rows]]
        labels = [WORDS[target] for target in digits.target[rows]]
        captions = [[template.format(label) for template in TEMPLATES] for label in labels]
        folder = directory / "folders" / split
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": images, "caption": captions, "label": labels})
        pq.write_table(table, directory / f"{split}.parquet")
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
            for index, (image, texts, label) in enumerate(zip(images, captions, labels, strict=True)):
                name = f"{index:04d}.png"
                (folder / name).write_bytes(image)
                lines.write(json.dumps({"image": name, "caption": texts, "label": label}) + "\n")
        print(f"{split}: {len(images)} images in {directory / split}.parquet and {folder}")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/digits"))
