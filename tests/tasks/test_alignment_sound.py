"""Image, text and sound in one model: which rows enter the loss, and that stand-ins and padding change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig, FusionConfig
from impresa.config.losses import LossConfig
from impresa.config.types import MemoryConfig
from impresa.data.audio import NUM_MELS
from impresa.errors import DataError
from impresa.losses.clip import clip_loss
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel

B, S, E, VOCAB, END = 8, 8, 12, 30, 29
TOWER = EncoderConfig(dim=16, depth=2, num_heads=4, patch_size=4, embed_dim=E, max_len=12)
HAS = {
    "image": torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool(),
    "text": torch.tensor([1, 1, 0, 1, 1, 1, 1, 0]).bool(),
    "audio": torch.tensor([1, 1, 1, 0, 1, 0, 1, 1]).bool(),
}


def config(**losses: object) -> ExperimentConfig:
    return ExperimentConfig(
        dataset=DatasetConfig(image_size=S),
        vision_encoder=replace(TOWER, memory=MemoryConfig(enabled=True, dim=16, num_memory_tokens=3)),
        text_encoder=replace(TOWER, backbone="transformer"),
        audio_encoder=replace(TOWER, backbone="spectrogram", patch_size=16, audio_max_seconds=1.0),
        losses=LossConfig(**losses),
    )


def build(**losses: object) -> AlignmentModel:
    return build_alignment(config(**losses), VOCAB, END)


def whole_batch() -> Batch:
    ids = torch.randint(1, END, (B, 6))
    ids[:, -1] = END
    lengths = torch.tensor([100, 3, 50, 100, 17, 80, 1, 64])
    return Batch(
        ids=[str(i) for i in range(B)],
        image=torch.randn(B, 3, S, S),
        input_ids=ids,
        attention_mask=torch.ones(B, 6, dtype=torch.bool),
        audio=torch.randn(B, 100, NUM_MELS),
        audio_mask=torch.arange(100) < lengths[:, None],
        captions=[f"caption {i}" for i in range(B)],
    )


def batch_with_gaps() -> Batch:
    whole = whole_batch()
    captions = [text if has else "" for text, has in zip(whole.captions, HAS["text"].tolist(), strict=True)]
    masks = {f"{name}_present": mask for name, mask in HAS.items()}
    return replace(whole, captions=captions, **masks)


FUSING = {"pairs": ("image-text", "text-audio", "image+audio-text")}


def build_fusing(**fusion: object) -> AlignmentModel:
    torch.manual_seed(0)
    return build_alignment(replace(config(**FUSING), fusion=FusionConfig(**fusion)), VOCAB, END)


def formula(model: AlignmentModel, batch: Batch) -> torch.Tensor:
    """The mean over pairs of the loss over the samples that have both, each embedded by itself."""
    found = {
        "image": model.embed_image(batch.image),
        "text": model.embed_text(batch.input_ids, batch.attention_mask),
        "audio": model.embed_audio(batch.audio, batch.audio_mask),
    }
    losses = []
    for a, b in (("image", "text"), ("image", "audio"), ("text", "audio")):
        both = HAS[a] & HAS[b]
        losses.append(clip_loss(found[a][both], found[b][both], model.loss.logit_scale.exp()))
    return torch.stack(losses).mean()


def test_a_batch_with_gaps_gives_the_loss_of_the_subsets() -> None:
    model, batch = build().eval(), batch_with_gaps()
    output = model(batch)
    torch.testing.assert_close(output.loss, formula(model, batch))
    for modality, mask in HAS.items():
        assert output.embeddings[modality].shape == (B, E)
        assert (output.embeddings[modality].abs().sum(dim=1) > 0).tolist() == mask.tolist()
        assert torch.equal(output.present[modality], mask)


def test_a_batch_with_gaps_trains_every_tower() -> None:
    model, batch = build(), batch_with_gaps()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(1, 41):
        optimizer.zero_grad()
        output = model(batch)
        output.loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing
        optimizer.step()
        model.commit(step)
        losses.append(output.loss.item())
    assert losses[0] > 1.2
    assert losses[-1] < 0.2


def test_what_stands_in_for_the_absent_reaches_neither_loss_nor_memory() -> None:
    results = []
    for junk in (0.0, 1e3):
        torch.manual_seed(0)
        model, batch = build(), batch_with_gaps()
        batch.image[~HAS["image"]] = junk
        batch.audio[~HAS["audio"]] = junk
        batch.input_ids[~HAS["text"], :-1] = 1 + int(junk > 0)
        loss = model(batch).loss
        loss.backward()
        model.commit(1)
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results.append((loss, gradient, model.vision_encoder.backbone.memory.state.clone()))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_modality_that_no_sample_has_still_gives_every_tower_a_gradient() -> None:
    model, batch = build(), replace(whole_batch(), audio_present=torch.zeros(B, dtype=torch.bool))
    output = model(batch)
    assert not output.embeddings["audio"].any()
    pair = clip_loss(output.embeddings["image"], output.embeddings["text"], model.loss.logit_scale.exp())
    torch.testing.assert_close(output.loss, pair / 3)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.audio_encoder.parameters())


@pytest.mark.parametrize("pair", ["image-text", "image-audio", "text-audio"])
def test_pairs_choose_what_is_aligned(pair: str) -> None:
    torch.manual_seed(0)
    model, batch = build(pairs=(pair,)).eval(), whole_batch()
    a, b = (model.embed(batch)[name] for name in pair.split("-"))
    torch.testing.assert_close(model(batch).loss, clip_loss(a, b, model.loss.logit_scale.exp()))


def test_samples_without_a_caption_are_nobody_s_duplicates() -> None:
    batch = batch_with_gaps()
    batch.text_present = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool()
    batch.captions = ["one", "two"] + [""] * 6
    torch.manual_seed(0)
    ignore = build(duplicates="ignore").eval()
    positive = build(duplicates="positive").eval()
    positive.load_state_dict(ignore.state_dict())
    batch.keys = {"image": torch.arange(B), "text": torch.tensor([1, 2, *[0] * 6]), "audio": torch.arange(B)}
    torch.testing.assert_close(positive(batch).loss, ignore(batch).loss)
    batch.keys["text"][1] = 1
    assert abs(positive(batch).loss - ignore(batch).loss) > 1e-3


def test_padding_of_sound_never_changes_an_embedding() -> None:
    model, batch = build().eval(), whole_batch()
    together = model.embed(batch)["audio"]
    for row in range(B):
        frames = int(batch.audio_mask[row].sum())
        alone = model.embed_audio(batch.audio[row : row + 1, :frames])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_an_audio_encoder_leaves_the_start_of_the_other_towers_as_it_is() -> None:
    torch.manual_seed(0)
    three = build().state_dict()
    torch.manual_seed(0)
    two = build_alignment(replace(config(), audio_encoder=None), VOCAB, END)
    assert all(torch.equal(three[name], tensor) for name, tensor in two.state_dict().items())
    assert {name.split(".")[0] for name in three.keys() - two.state_dict().keys()} == {"audio_encoder"}
    with pytest.raises(DataError, match="the model has no audio encoder"):
        two.embed_audio(torch.zeros(1, 10, NUM_MELS))


@pytest.mark.parametrize(
    "change", [{"dim": 32}, {"depth": 1}, {"patch_size": 32}, {"audio_max_seconds": 2.0}, {"projection": "none"},
               {"use_perceiver": True, "perceiver_num_heads": 2}, {"use_attention_pooling": True}],
)  # fmt: skip
def test_fields_that_shape_the_audio_encoder(change: dict[str, object]) -> None:
    def shapes(experiment: ExperimentConfig) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in build_alignment(experiment, VOCAB, END).state_dict().items()}

    plain = config()
    assert shapes(replace(plain, audio_encoder=replace(plain.audio_encoder, **change))) != shapes(plain)


STRATEGIES = pytest.mark.parametrize("strategy", ["concat", "cross_attention", "gated"])


@STRATEGIES
def test_the_fused_embedding_is_aligned_with_the_caption(strategy: str) -> None:
    model, batch = build_fusing(strategy=strategy).eval(), whole_batch()
    found = model.embed(batch)
    assert list(found) == ["image", "text", "audio", "image+audio"]
    fused = model.embed_image_audio(batch.image, batch.audio, batch.audio_mask)
    torch.testing.assert_close(found["image+audio"], fused)
    scale = model.loss.logit_scale.exp()
    others = [clip_loss(found[name], found["text"], scale) for name in ("image", "audio", "image+audio")]
    torch.testing.assert_close(model(batch).loss, torch.stack(others).mean())


@STRATEGIES
def test_gaps_reach_neither_the_fused_loss_nor_other_samples(strategy: str) -> None:
    results = []
    for junk in (0.0, 1e3):
        model, batch = build_fusing(strategy=strategy), batch_with_gaps()
        batch.image[~HAS["image"]] = junk
        batch.audio[~HAS["audio"]] = junk
        output = model(batch)
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        results.append(torch.cat([output.loss[None], *(parameter.grad.flatten() for parameter in model.parameters())]))
        assert output.present["image+audio"].all()
    assert torch.equal(*results)


def test_each_field_of_the_fusion_changes_the_model() -> None:
    cross = {"strategy": "cross_attention", "layers": 1, "num_queries": 3, "num_heads": 2}
    plain, batch = build_fusing(**cross), whole_batch()
    for name, value in {"strategy": "gated", "layers": 2, "num_queries": 4, "num_heads": 1}.items():
        other = build_fusing(**{**cross, name: value})
        assert not torch.allclose(plain.embed(batch)["image+audio"], other.embed(batch)["image+audio"], atol=1e-4), name
        assert torch.equal(plain.vision_encoder.head.weight, other.vision_encoder.head.weight)
    dropped = build_fusing(**cross, dropout=0.5)
    assert not torch.equal(dropped.embed(batch)["image+audio"], dropped.embed(batch)["image+audio"])
    assert torch.equal(dropped.eval().embed(batch)["image+audio"], plain.eval().embed(batch)["image+audio"])


def test_without_the_pair_there_is_no_fusion() -> None:
    model, batch = build(), whole_batch()
    assert "image+audio" not in model.embed(batch)
    with pytest.raises(DataError, match=r"the model has no fusion; train one with image\+audio-text in losses"):
        model.embed_image_audio(batch.image, batch.audio)
