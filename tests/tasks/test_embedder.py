from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import impresa
from impresa.errors import DataError
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.quantization import quantized
from tiny_run import finished_run

TEXTS = ["a red circle", "a large blue square above a small green triangle", "circle"]


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    return impresa.load(finished_run(), "cpu")


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def raw(image: Image.Image) -> Tensor:
    return torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def test_several_give_rows_and_one_gives_a_vector(model: EmbeddingModel) -> None:
    images, texts = model.encode_image([picture(0), picture(1)]), model.encode_text(TEXTS)
    assert images.shape == (2, 16)
    assert texts.shape == (3, 16)
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")
    assert torch.allclose(model.encode_image(picture(1)), images[1], atol=1e-6)
    assert torch.allclose(model.encode_text(TEXTS[1]), texts[1], atol=1e-6)


def test_nothing_gives_no_rows(model: EmbeddingModel) -> None:
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 16)


def test_embeddings_have_length_one_unless_asked_otherwise(model: EmbeddingModel) -> None:
    free = model.encode_text(TEXTS, normalize=False)
    assert torch.allclose(model.encode_text(TEXTS).norm(dim=1), torch.ones(3))
    assert not torch.allclose(free.norm(dim=1), torch.ones(3), atol=1e-3)
    assert torch.allclose(torch.nn.functional.normalize(free, dim=1), model.encode_text(TEXTS))


def test_a_prefix_is_cut_first_and_scaled_then(model: EmbeddingModel) -> None:
    free = model.encode_text(TEXTS, normalize=False)
    assert torch.allclose(model.encode_text(TEXTS, dim=4), torch.nn.functional.normalize(free[:, :4], dim=1))
    assert torch.equal(model.encode_text(TEXTS, dim=4, normalize=False), free[:, :4])
    assert torch.equal(model.encode_text(TEXTS, dim=16), model.encode_text(TEXTS))
    images = model.encode_image([picture(0), picture(1)], normalize=False)
    cut = torch.nn.functional.normalize(images[:, :4], dim=1)
    assert torch.allclose(model.encode_image([picture(0), picture(1)], dim=4), cut)
    assert torch.allclose(model.encode_image(picture(1), dim=4), cut[1], atol=1e-6)
    assert torch.equal(model.encode_image([picture(0), picture(1)], dim=4, normalize=False), images[:, :4])


@pytest.mark.parametrize("dim", [0, -1, 17, 2.5, True, "4"])
def test_a_prefix_longer_than_the_embedding_is_refused(dim: Any, model: EmbeddingModel) -> None:
    with pytest.raises(DataError, match=rf"^dim: {dim!r} is not within 1 to 16"):
        model.encode_text(TEXTS, dim=dim)


def test_an_option_of_another_library_is_named_beside_ours(model: EmbeddingModel) -> None:
    strange: dict[str, Any] = {"normalize_embeddings": True, "convert_to_tensor": True}
    line = r"^encode_\* has no option normalize_embeddings, convert_to_tensor; there are convert_to_numpy, batch_size"
    with pytest.raises(TypeError, match=line):
        model.encode_text("a", **strange)


def test_embeddings_come_as_arrays_too(model: EmbeddingModel) -> None:
    array = model.encode_text(TEXTS, convert_to_numpy=True)
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == ((3, 16), np.float32)
    assert np.array_equal(array, model.encode_text(TEXTS).numpy())
    assert model.encode_image(picture(0), convert_to_numpy=True, precision="binary").shape == (2,)
    with pytest.raises(DataError, match=r"^convert_to_numpy: 1 is neither True nor False"):
        model.encode_text(TEXTS, convert_to_numpy=1)  # type: ignore[call-overload]


def test_a_precision_is_taken_of_the_prefix_at_length_one(model: EmbeddingModel) -> None:
    expected = quantized(model.encode_text(TEXTS, dim=8), "int8")
    assert torch.equal(model.encode_text(TEXTS, dim=8, precision="int8"), expected)
    signs = model.encode_text(TEXTS, precision="ubinary")
    assert (signs.shape, signs.dtype) == ((3, 2), torch.uint8)
    assert model.encode_text([], precision="binary").shape == (0, 2)


def test_queries_take_the_ranges_of_their_corpus(model: EmbeddingModel) -> None:
    corpus = model.encode_text(TEXTS)
    ranges = torch.stack([corpus.amin(0), corpus.amax(0)])
    query = model.encode_text(TEXTS[1], precision="uint8", ranges=ranges)
    assert query.shape == (16,)
    assert torch.allclose(query.float(), model.encode_text(TEXTS, precision="uint8")[1].float(), atol=1)


@pytest.mark.parametrize(
    ("texts", "options", "line"),
    [
        (TEXTS, {"precision": "int4"}, "precision: 'int4' is none of float32, int8, uint8, binary, ubinary; give one"),
        (TEXTS, {"precision": None}, "precision: None is none of float32"),
        ("a", {"precision": "int8"}, "precision: the range of int8 cannot be told from one embedding; give `ranges`"),
        (TEXTS, {"ranges": [[0.0] * 16] * 2}, "ranges: are for precision int8 and uint8, not for float32; leave"),
        (TEXTS, {"precision": "int8", "ranges": [[0.0] * 8] * 2}, "ranges: shape (2, 8) or their order does not fit;"),
        (TEXTS, {"precision": "int8", "ranges": [[1.0] * 16, [0.0] * 16]}, "ranges: shape (2, 16) or their order"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    texts: Any, options: dict[str, Any], line: str, model: EmbeddingModel
) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(line)}"):
        model.encode_text(texts, **options)


def test_quantised_embeddings_have_no_cosines(model: EmbeddingModel) -> None:
    rows = model.encode_text(TEXTS)
    for other in (quantized(rows, "int8"), quantized(rows, "ubinary").numpy(), list(quantized(rows, "int8"))):
        with pytest.raises(DataError, match=r"^b(\[0\])?: holds quantised embeddings"):
            model.similarity(rows, other)


def test_the_batch_size_changes_nothing(model: EmbeddingModel) -> None:
    images = [picture(seed) for seed in range(5)]
    assert torch.allclose(model.encode_image(images, batch_size=2), model.encode_image(images), atol=1e-6)
    assert torch.allclose(model.encode_text(TEXTS, batch_size=1), model.encode_text(TEXTS), atol=1e-6)


def test_a_picture_is_the_same_as_file_as_path_text_and_as_tensor(model: EmbeddingModel, tmp_path: Path) -> None:
    image = picture(3)
    image.save(tmp_path / "a.png")
    expected = model.encode_image(image)
    many = [tmp_path / "a.png", str(tmp_path / "a.png"), raw(image), model.preprocessing.image(image)]
    assert torch.allclose(model.encode_image(many), expected.expand(4, -1), atol=1e-6)
    for one in many:
        assert torch.allclose(model.encode_image(one), expected, atol=1e-6)


def test_a_tensor_of_four_dimensions_is_a_batch(model: EmbeddingModel) -> None:
    images = [picture(seed) for seed in range(3)]
    batch = torch.stack([raw(image) for image in images])
    assert torch.allclose(model.encode_image(batch), model.encode_image(images), atol=1e-6)


@pytest.mark.parametrize("tensor", [torch.zeros(3, 9, 9), torch.zeros(1, 16, 16), torch.zeros(16, 16, 3).byte()])
def test_a_tensor_of_another_shape_is_refused(tensor: Tensor, model: EmbeddingModel) -> None:
    with pytest.raises(DataError, match=r"^images\[0\]: .*give \(3, 16, 16\) floats"):
        model.encode_image([tensor])


def test_what_cannot_be_read_is_named(model: EmbeddingModel, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        model.encode_image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"^texts\[1\]: got int"):
        model.encode_text(["a", 3])  # type: ignore[list-item]


def test_similarity_is_the_cosine_of_all_pairs(model: EmbeddingModel) -> None:
    a, b = model.encode_image([picture(0), picture(1)], normalize=False), model.encode_text(TEXTS)
    found = model.similarity(a, b)
    assert found.shape == (2, 3)
    assert found[1, 2].item() == pytest.approx(torch.cosine_similarity(a[1], b[2], dim=0).item(), abs=1e-6)
    assert model.similarity(a[0], b).shape == (1, 3)
    assert torch.allclose(model.similarity(a, a).diagonal(), torch.ones(2))


def test_similarity_takes_arrays_and_lists_and_names_what_does_not_fit(model: EmbeddingModel) -> None:
    a, b = model.encode_image([picture(0), picture(1)]), model.encode_text(TEXTS)
    for other in (b.numpy(), list(b), b.tolist()):
        assert torch.equal(model.similarity(a.numpy(), other), model.similarity(a, b))
    assert model.similarity([], b).shape == (0, 3)
    assert model.similarity(a, []).shape == (2, 0)
    with pytest.raises(DataError, match=r"^b: embeddings of 4 numbers, and those of a have 16; embed both"):
        model.similarity(a, b[:, :4])


def test_a_bad_input_is_named_by_its_place_in_the_whole_list(model: EmbeddingModel) -> None:
    with pytest.raises(DataError, match=r"^images\[5\]: nowhere\.png: there is no such file"):
        model.encode_image([*map(picture, range(5)), "nowhere.png"], batch_size=2)
    with pytest.raises(DataError, match=r"^batch_size: 0 is not a whole number from 1"):
        model.encode_text(TEXTS, batch_size=0)
    with pytest.raises(DataError, match=r"^normalize: 'no' is neither True nor False"):
        model.encode_text(TEXTS, normalize="no")  # type: ignore[arg-type]


def test_it_works_after_someone_turned_on_training_mode(model: EmbeddingModel) -> None:
    expected = model.encode_text(TEXTS)
    model.model.train()
    assert torch.equal(model.encode_text(TEXTS), expected)
    assert not expected.requires_grad
    torch.nn.Linear(16, 1)(expected).sum().backward()  # embeddings can feed a classifier


def test_progress_goes_to_standard_error(model: EmbeddingModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode_text(TEXTS, show_progress=True)
    model.encode_text(TEXTS)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("encoding") == 1
