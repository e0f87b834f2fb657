"""Which embeddings are compared with which: samples that lack a modality, and captions that are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from impresa.config.experiment import LossConfig
from impresa.errors import DataError
from impresa.losses.clip import clip_loss
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.pairs import caption_labels

B, E = 8, 16
SCALE = torch.tensor(1 / 0.07)


def embeddings(*modalities: str) -> dict[str, Tensor]:
    return {name: torch.randn(B, E, requires_grad=True) for name in modalities}


def test_samples_without_a_modality_are_left_out_of_its_pairs() -> None:
    inputs = embeddings("image", "text", "audio")
    has_audio = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    has_text = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    image, text, audio = inputs.values()
    both = has_audio & has_text
    expected = (
        clip_loss(image[has_text], text[has_text], SCALE)
        + clip_loss(image[has_audio], audio[has_audio], SCALE)
        + clip_loss(text[both], audio[both], SCALE)
    ) / 3
    loss = ContrastiveLoss(LossConfig())(inputs, present={"audio": has_audio, "text": has_text}).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not audio.grad[~has_audio].any()
    assert audio.grad[has_audio].any(dim=1).all()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_modality_that_no_sample_has_adds_nothing(kind: str) -> None:
    inputs = embeddings("image", "text", "audio")
    loss = ContrastiveLoss(LossConfig(type=kind))
    nobody = {"audio": torch.zeros(B, dtype=torch.bool)}
    both = loss(inputs, present=nobody).loss
    without = loss({name: inputs[name] for name in ("image", "text")}).loss
    torch.testing.assert_close(3 * both, without)
    both.backward()
    assert all(x.grad.isfinite().all() for x in inputs.values())


def test_equal_captions_have_equal_labels_and_no_others() -> None:
    captions = ["a red circle", "a red circle.", "A red circle", "a red circle", "", "絵"]
    labels = caption_labels(captions, torch.device("cpu"))
    same = labels[:, None] == labels
    assert same.tolist() == [[left == right for right in captions] for left in captions]
    assert labels.tolist() == caption_labels(captions, torch.device("cpu")).tolist()
    assert labels[0].item() == 3868813310041309068  # the same in every process, on every machine


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_duplicates_can_be_right_answers(kind: str) -> None:
    """Captions that are the same have the same embedding: only as positives can the loss fall to its least value."""
    captions = ["one", "two", "one", "three", "one", "two", "four", "five"]
    axes = torch.eye(E)[caption_labels(captions, torch.device("cpu")).unique(return_inverse=True)[1]]
    inputs = {"image": axes, "text": axes}
    found = {}
    for duplicates in ("ignore", "positive"):
        loss = ContrastiveLoss(LossConfig(type=kind, duplicates=duplicates, siglip_bias=-50.0, temperature=0.01))
        found[duplicates] = loss(inputs, captions=captions).logs["contrastive"].item()
    if kind == "clip":  # ln 3, 1/3 each, is the least for three answers
        least = (3 * torch.tensor(3.0).log() + 2 * torch.tensor(2.0).log()) / B
        assert found["positive"] == pytest.approx(least.item(), rel=1e-5)
        distinct = ContrastiveLoss(LossConfig(duplicates="positive"))
        torch.testing.assert_close(distinct(inputs, captions=[*map(str, range(B))]).loss, clip_loss(axes, axes, SCALE))
    else:
        assert found["positive"] < 1e-5
        assert found["ignore"] > 10


def test_duplicates_among_samples_that_lack_a_modality() -> None:
    inputs, loss = embeddings("image", "text"), ContrastiveLoss(LossConfig(type="siglip", duplicates="positive"))
    captions, has_text = list("ababcdde"), torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    found = loss(inputs, present={"text": has_text}, captions=captions).loss
    kept = [caption for caption, has in zip(captions, has_text, strict=True) if has]
    torch.testing.assert_close(found, loss({name: x[has_text] for name, x in inputs.items()}, captions=kept).loss)


def test_duplicates_need_a_caption_for_each_sample() -> None:
    with pytest.raises(DataError, match="batch: has 3 captions for 8 samples; "):
        ContrastiveLoss(LossConfig(duplicates="positive"))(embeddings("image", "text"), captions=["a"] * 3)
