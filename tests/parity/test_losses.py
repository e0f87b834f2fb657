"""The losses are those of transformers' models and of sentence-transformers, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from impresa.losses.clip import clip_loss
from impresa.losses.matryoshka import matryoshka_clip_loss, matryoshka_siglip_loss
from impresa.losses.pairs import Negatives
from impresa.losses.siglip import siglip_loss

TOLERANCE = 1e-5
B, WIDTH, S, T, V = 6, 32, 16, 7, 50
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": V,
}
IMAGE = {**TEXT, "image_size": S, "patch_size": 8}


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, V - 1, (B, T))
    ids[:, -1] = V - 1
    return {"pixel_values": torch.randn(B, 3, S, S), "input_ids": ids}


def clip_model() -> CLIPModel:
    text = {**TEXT, "eos_token_id": V - 1, "bos_token_id": 0, "pad_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=20))


def siglip_model() -> SiglipModel:
    return SiglipModel(SiglipConfig(text_config={**TEXT, "max_position_embeddings": T}, vision_config=IMAGE))


def clip_embeddings(model: CLIPModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    image = model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
    text = model.text_model(input_ids=inputs["input_ids"]).pooler_output
    return model.visual_projection(image), model.text_projection(text)


def siglip_embeddings(model: SiglipModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    image = model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
    return image, model.text_model(input_ids=inputs["input_ids"]).pooler_output


def assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert (mine - other).norm() <= TOLERANCE * other.norm()


def shaken(model: nn.Module) -> nn.Module:
    """Away from the fresh weights, under which all embeddings are alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("fast", [False, True])
def test_clip_is_that_of_transformers(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = shaken(clip_model()), batch()
    image, text = (x.detach().requires_grad_() for x in clip_embeddings(model, inputs))
    monkeypatch.setattr(model.visual_projection, "forward", lambda _: image)
    monkeypatch.setattr(model.text_projection, "forward", lambda _: text)
    scale = model.logit_scale.exp()
    ours = matryoshka_clip_loss(image, text, scale, [20])[0] if fast else clip_loss(image, text, scale)
    assert_same(ours, model(**inputs, return_loss=True).loss, [image, text, model.logit_scale])


@pytest.mark.parametrize("fast", [False, True])
def test_siglip_is_that_of_transformers(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = shaken(siglip_model()), batch()
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-2.0)
    image, text = (x.detach().requires_grad_() for x in siglip_embeddings(model, inputs))
    monkeypatch.setattr(model.vision_model.head, "forward", lambda _: image)
    monkeypatch.setattr(model.text_model.head, "forward", lambda _: text)
    scale, bias = model.logit_scale.exp().squeeze(), model.logit_bias.squeeze()
    if fast:
        ours = matryoshka_siglip_loss(image, text, scale, bias, [WIDTH])[0]
    else:
        ours = siglip_loss(image, text, scale, bias)
    assert_same(ours, model(**inputs, return_loss=True).loss, [image, text, model.logit_scale, model.logit_bias])


class Embeddings(nn.Module):
    """What sentence-transformers needs of a model, around embeddings that are there."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return WIDTH


def test_a_hard_negative_is_that_of_sentence_transformers() -> None:
    """Theirs too are columns of the direction from anchors to documents alone."""
    a, b, wrong = (torch.randn(B, WIDTH, requires_grad=True) for _ in range(3))
    scale = torch.tensor(20.0, requires_grad=True)
    both = ("query_to_doc", "doc_to_query")
    ranking = MultipleNegativesRankingLoss(Embeddings(), scale=scale, directions=both, partition_mode="per_direction")
    theirs = ranking([{"embedding": column} for column in (a, b, wrong)], torch.empty(0))
    ours = matryoshka_clip_loss(a, b, scale, [WIDTH], negatives=Negatives(wrong, None))[0]
    assert_same(ours, theirs, [a, b, wrong, scale])


@pytest.mark.parametrize("row_chunk", [None, 4])
def test_matryoshka_is_that_of_sentence_transformers(row_chunk: int | None) -> None:
    """Theirs is the weighted sum; ours are the losses one by one."""
    dims, weights = [32, 16, 8, 4], [1.0, 0.3, 2.0, 0.7]
    a, b = (torch.randn(B, WIDTH, requires_grad=True) for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)
    model = Embeddings()
    both = ("query_to_doc", "doc_to_query")
    ranking = MultipleNegativesRankingLoss(model, scale=scale, directions=both, partition_mode="per_direction")
    theirs = MatryoshkaLoss(model, ranking, dims, weights)([{"embedding": a}, {"embedding": b}], torch.empty(0))
    ours = matryoshka_clip_loss(a, b, scale, dims, row_chunk=row_chunk) @ torch.tensor(weights)
    assert_same(ours, theirs, [a, b, scale])
