"""Every form in which people have images, sounds and numbers is read; everything else is one line with its place."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from impresa.data.audio import Clip, LogMelTransform
from impresa.data.images import ImageTransform
from impresa.errors import DataError
from impresa.tasks.arguments import flag, texts_of, vectors_of, whole_number
from impresa.tasks.inputs import features_of, images_of, pixels_of, sounds_of
from pictures import gradient
from sounds_on_disk import sine

IMAGE, SOUND = ImageTransform(16), LogMelTransform(0.5)
PICTURE = gradient(24, 20)
RGB = np.array(PICTURE)
WAVE = sine(300).numpy()
RATE = 16_000


def png(image: Image.Image = PICTURE) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, WAVE, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def pixels(images: Any) -> torch.Tensor:
    return pixels_of(images_of("images", images).items, IMAGE)


def features(sounds: Any) -> torch.Tensor:
    return features_of(sounds_of("sounds", sounds).items, SOUND)[0]


FORMS = {
    "array": RGB,
    "a view that runs backwards": RGB[..., ::-1][..., ::-1],
    "an array with opacity": np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)]),
    "tensor": torch.from_numpy(RGB).permute(2, 0, 1),
    "bytes": png(),
    "bytearray": bytearray(png()),
    "memoryview": memoryview(png()),
    "of datasets": {"bytes": png(), "path": None},
    "preprocessed": IMAGE(PICTURE),
    "preprocessed, in training": IMAGE(PICTURE).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_same_in_every_form(form: str) -> None:
    expected, given = IMAGE(PICTURE), FORMS[form]
    assert images_of("images", given).is_one
    assert not images_of("images", [given]).is_one
    assert torch.equal(pixels(given), expected[None])
    assert torch.equal(pixels([given, given])[1], expected)


def test_open_files_and_paths_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    (tmp_path / "a.wav").write_bytes(wav())
    with path.open("rb") as file, (tmp_path / "a.wav").open("rb") as sound:
        file.seek(7)  # it is read from its start
        assert torch.equal(pixels([file, file, path, str(path), io.BytesIO(png())]), IMAGE(PICTURE).repeat(5, 1, 1, 1))
        several = features([sound, sound, str(tmp_path / "a.wav"), io.BytesIO(wav()), wav()])
        assert torch.equal(several, features((WAVE, RATE)).repeat(5, 1, 1))


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(pixels("~/a.png"), IMAGE(PICTURE)[None])


def test_grey_arrays_are_grey_images() -> None:
    expected = IMAGE(Image.fromarray(RGB[..., 0]).convert("RGB"))[None]
    for grey in (RGB[..., 0], RGB[..., :1], torch.from_numpy(RGB[..., 0].copy()), torch.from_numpy(RGB[None, ..., 0])):
        assert torch.equal(pixels(grey), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "La", "I", "F",
             "I;16", "I;16B"],
)  # fmt: skip
def test_images_of_every_mode_are_read(mode: str) -> None:
    assert pixels(Image.new(mode, (9, 9))).shape == (1, 3, 16, 16)


def test_what_a_palette_makes_transparent_is_white() -> None:
    image = Image.new("P", (9, 9), 1)
    image.info["transparency"] = b"\xff\x00"
    assert torch.equal(pixels(image), IMAGE(Image.new("RGB", (9, 9), "white"))[None])


def test_a_batch_of_arrays_is_several_images() -> None:
    expected = IMAGE(PICTURE).repeat(2, 1, 1, 1)
    batch = np.stack([RGB, RGB])
    for several in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), (RGB, RGB), iter([RGB, PICTURE])):
        inputs = images_of("images", several)
        assert not inputs.is_one
        assert torch.equal(pixels_of(inputs.items, IMAGE), expected)


CLOSED = io.BytesIO(png())
CLOSED.close()
NOT_IMAGES = {
    "nothing": (None, "got NoneType"),
    "a number": (3, "got int"),
    "a dict": ({"a": 1}, "got dict"),
    "an empty dict of datasets": ({"bytes": None, "path": None}, "got dict"),
    "floats": (RGB / 255, "an array of float64 and shape (20, 24, 3); give (H, W, 3) uint8"),
    "booleans": (RGB > 9, "an array of bool"),
    "integers": (RGB.astype(int), "an array of int64"),
    "objects": (RGB.astype(object), "an array of object"),
    "two channels": (RGB[..., :2], "an array of uint8 and shape (20, 24, 2)"),
    "an array without pixels": (RGB[:0], "the image has no pixels"),
    "an image without pixels": (Image.new("RGB", (0, 4)), "the image has no pixels"),
    "a tensor of arrays": (torch.from_numpy(RGB), "a tensor of torch.uint8 and shape (20, 24, 3); give (3, 16, 16)"),
    "another size": (torch.zeros(3, 9, 9), "a tensor of torch.float32 and shape (3, 9, 9)"),
    "no content": (torch.zeros(3, 16, 16, device="meta"), "a tensor of torch.float32"),
    "sparse": (torch.zeros(3, 16, 16).to_sparse(), "a tensor of torch.float32"),
    "NaN": (torch.full((3, 16, 16), float("nan")), "the tensor holds numbers that are not finite"),
    "empty bytes": (b"", "the image is empty"),
    "other bytes": (b"abc", "not an image of a known format"),
    "open as text": (io.StringIO("x"), "the file is open as text; open it with mode 'rb'"),
    "closed": (CLOSED, "the open file cannot be read"),
    "no file": ("nowhere.png", f"nowhere.png: there is no such file; give the path of one (looked in {Path.cwd()})"),
    "no file, two lines": ("no\nwhere.png", "no where.png: there is no such file"),
    "an empty path": (" ", "the path is empty"),
    "a folder": (str(Path.cwd()), "Is a directory"),
    "an impossible path": ("a\0b", "there is no such file"),
    "base64": ("iVBORw0KGgo" * 999, "iVBORw0KGgo"),
    "the web": ("https://example.com/a.png", "is an address and no file; download it"),
    "a data address": ("data:image/png;base64,AAAA", "is an address and no file"),
}


@pytest.mark.parametrize("case", NOT_IMAGES)
def test_what_is_no_image_is_one_line_with_its_place(case: str) -> None:
    given, message = NOT_IMAGES[case]
    for argument, place in ((given, "images"), ([PICTURE, given], "images[1]")):
        with pytest.raises(DataError) as caught:
            pixels(argument)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{place}: ")
        assert message in line or line.startswith("images: got")
        assert len(line) < 260


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "too large"])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    message = "has 1048576 MiB, more than" if kind == "too large" else f"is no regular file but {kind}"
    for read in (pixels, features):
        with pytest.raises(DataError, match=message) as caught:
            read(str(path))
        assert len(caught.value.lines) == 1


def test_an_open_device_is_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impresa.tasks.inputs.MAX_BYTES", 1 << 20)
    with Path("/dev/zero").open("rb") as file, pytest.raises(DataError, match="the open file has 1 MiB, more than"):
        pixels(file)


@pytest.mark.parametrize("given", [{PICTURE.tobytes()}, {"a": PICTURE}, np.array(3), torch.tensor(3), object()])
def test_what_is_no_list_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"^images: got \w+; give one, or a list of them$"):
        pixels(given)


SAMPLES = {
    "float64": WAVE.astype(float),
    "big-endian": WAVE.astype(">f4"),
    "backwards": WAVE[::-1].copy()[::-1],
    "tensor": torch.from_numpy(WAVE),
    "in training": torch.tensor(WAVE, requires_grad=True),
    "torchaudio's": torch.from_numpy(WAVE)[None],
    "stereo of torchaudio": torch.from_numpy(WAVE).repeat(2, 1),
    "stereo of soundfile": np.stack([WAVE, WAVE], axis=1),
    "list": WAVE.tolist(),
}


@pytest.mark.parametrize("form", SAMPLES)
def test_samples_are_the_same_in_every_form(form: str) -> None:
    expected, samples = features((WAVE, RATE)), SAMPLES[form]
    for rate in (RATE, np.int64(RATE), float(RATE), torch.tensor(RATE)):
        torch.testing.assert_close(features((samples, rate)), expected)
    for one in ({"array": samples, "sampling_rate": RATE, "path": "a.wav"}, {"raw": samples, "sampling_rate": RATE}):
        assert sounds_of("sounds", one).is_one
        torch.testing.assert_close(features(one), expected)
    torch.testing.assert_close(features(Clip(torch.from_numpy(WAVE), RATE)), expected)


def test_integers_are_scaled_by_their_full_scale() -> None:
    for kind, tolerance in ((np.int16, 5e-3), (np.int32, 1e-5)):
        whole = (WAVE.astype(float) * (np.iinfo(kind).max + 1)).astype(kind)
        torch.testing.assert_close(features((whole, RATE)), features((WAVE, RATE)), atol=tolerance, rtol=0)


def test_two_paths_are_two_sounds_and_a_pair_with_a_number_is_one() -> None:
    assert len(sounds_of("sounds", ("a.wav", "b.wav")).items) == 2
    assert sounds_of("sounds", (WAVE, RATE)).is_one
    assert len(sounds_of("sounds", [(WAVE, RATE), (WAVE, RATE)]).items) == 2


NOT_SOUNDS = {
    "nothing": (None, "got NoneType"),
    "no rate": (WAVE, "got ndarray; give a path, bytes, an open file, or a pair of samples"),
    "no rate, tensor": (torch.from_numpy(WAVE), "got Tensor"),
    "the other way round": ((RATE, WAVE), "is no number of samples per second"),
    "a rate of no number": ((WAVE, float("nan")), "nan is no number of samples per second"),
    "a truth": ((WAVE, True), "True is no number of samples per second"),
    "no samples a second": ((WAVE, 0), "has a rate of 0 Hz"),
    "few samples a second": ((WAVE, 1), "has a rate of 1 Hz, outside 1000 to 768000"),
    "many samples a second": ((WAVE, 10**9), "has a rate of 1000000000 Hz"),
    "bytes of a wav": ((WAVE.astype(np.uint8), RATE), "samples of uint8; give floats"),
    "long integers": ((WAVE.astype(int), RATE), "samples of int64"),
    "complex": ((WAVE * 1j, RATE), "samples of complex64"),
    "text": (("a.wav", RATE), "samples of <U5"),
    "ragged": (([[1.0, 2.0], [3.0]], RATE), "the samples are no array but list"),
    "no content": ((torch.zeros(9, device="meta"), RATE), "the samples are no array but Tensor"),
    "NaN": ((WAVE * np.nan, RATE), "holds samples that are not finite"),
    "too large for float32": ((np.full(9, 1e300), RATE), "holds samples that are not finite"),
    "silence of no length": ((WAVE[:0], RATE), "holds no sound"),
    "many channels": ((np.zeros((99, 99)), RATE), "samples of shape (99, 99)"),
    "no array": ({"array": None, "sampling_rate": RATE}, "samples of object"),
    "no sound": (b"abc", "cannot be decoded as sound"),
    "no file": ("nowhere.wav", "nowhere.wav: there is no such file"),
    "the web": ("https://example.com/a.wav", "is an address and no file"),
}


@pytest.mark.parametrize("case", NOT_SOUNDS)
def test_what_is_no_sound_is_one_line_with_its_place(case: str) -> None:
    given, message = NOT_SOUNDS[case]
    for argument, place in ((given, "sounds"), ([(WAVE, RATE), given], "sounds[1]")):
        with pytest.raises(DataError) as caught:
            features(argument)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{place}: ")
        assert message in line or line.startswith("sounds: got")


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "texts: got NoneType"), (3, "texts: got int"), (b"a", "texts: got bytes; give a string"),
     (["a", None], r"texts\[1\]: got NoneType; give a string"), ([["a"]], r"texts\[0\]: got list"),
     ({"a"}, "texts: got set"), ("\ud800", "texts: is not UTF-8 text"), (np.array("a"), "texts: got ndarray")],
)  # fmt: skip
def test_what_is_no_text_is_refused(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        texts_of("texts", given)


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, None, float("nan"), [1]])
def test_a_count_is_a_whole_number(value: Any) -> None:
    with pytest.raises(DataError, match=r"^batch_size: .* is not a whole number from 1; give one$"):
        whole_number("batch_size", value)
    assert [whole_number("n", good) for good in (2, np.int64(2), 2.0, torch.tensor(2))] == [2, 2, 2, 2]


def test_a_flag_is_true_or_false() -> None:
    assert flag("normalize", np.True_) is True
    with pytest.raises(DataError, match=r"^normalize: 'false' is neither True nor False"):
        flag("normalize", "false")


VECTORS = torch.randn(2, 4)


@pytest.mark.parametrize(
    "given",
    [VECTORS, VECTORS.double(), VECTORS.numpy(), VECTORS.numpy().astype(">f8"), VECTORS.tolist(), list(VECTORS),
     list(VECTORS.numpy()), list(VECTORS[:, None])],
)  # fmt: skip
def test_embeddings_are_the_same_in_every_form(given: Any) -> None:
    torch.testing.assert_close(vectors_of("a", given), VECTORS)
    torch.testing.assert_close(vectors_of("a", given[1]), VECTORS[1:])


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "a: got NoneType"), ("x", "a: got str"), (3.0, r"a: embeddings of shape \(\)"), ({"a": 1}, "a: got dict"),
     (torch.zeros(1, 2, 3), r"a: embeddings of shape \(1, 2, 3\)"), (["x"], r"a\[0\]: got str"),
     (torch.tensor([[1.0], [float("nan")]]), r"a\[1\]: holds numbers that are not finite"),
     ([VECTORS[0], VECTORS[1] / 0], r"a\[1\]: holds numbers that are not finite"),
     ([VECTORS[0], VECTORS[1, :2]], r"a\[1\]: 1 embeddings of 2 numbers; give one at each place"),
     ([VECTORS, VECTORS], r"a\[0\]: 2 embeddings of 4 numbers"), (VECTORS > 0, "a: got a tensor of torch.bool"),
     (np.zeros(3) * 1j, "a: got ndarray of complex128")],
)  # fmt: skip
def test_what_are_no_embeddings_is_refused(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        vectors_of("a", given)
