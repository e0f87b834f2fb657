"""The vision-language model: what its loss is, which tokens it reads, and what is trained in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from impresa.config.experiment import ExperimentConfig
from impresa.data.audio import Clip, LogMelTransform
from impresa.data.chat import TemplateChat
from impresa.data.dialogue import Dialogue, with_references
from impresa.data.sample import Sample
from impresa.decoders.base import IGNORED
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.build import build_vlm
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.training.costs import CostMeter
from tiny_hub import clip, dinov2, siglip
from tiny_qwen import chat_tokenizer, save_qwen
from tiny_run import finished_run
from tiny_vlm import TOWER, chat, collated, picture, rough, samples, tiny_qwen_vlm, tiny_vlm, tiny_vlm_on

MEMORY = ("vision_encoder.memory.enabled=true", "vision_encoder.memory.dim=16")
MEMORY += ("vision_encoder.memory.num_memory_tokens=3",)
PERCEIVER = ("vision_encoder.use_perceiver=true", "vision_encoder.perceiver_num_latents=5")
PERCEIVER += ("vision_encoder.perceiver_num_heads=2", "vision_encoder.perceiver_num_layers=1")
KINDS = {"tokens": 4, "cls_patches": 5, "perceiver": 5, "memory": 3}
"""How many tokens each kind of prefix has: an image of 16 pixels has four patches of 8."""
SOUND = ("audio_encoder.backbone=spectrogram", "audio_encoder.dim=16", "audio_encoder.depth=1")
SOUND += ("audio_encoder.num_heads=2", "audio_encoder.embed_dim=16", "audio_encoder.audio_max_seconds=0.3")
STRATEGIES = {
    "concat": (),
    "cross_attention": ("fusion.num_queries=6", "fusion.layers=1"),
    "gated": ("fusion.num_queries=6",),
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def built(config: ExperimentConfig) -> VisionLanguageModel:
    return rough(build_vlm(config, 280))


def of_kind(kind: str) -> tuple[str, ...]:
    return *MEMORY, *PERCEIVER, f"decoder.prefix={kind}"


def with_sounds(*, silent: int | None = None) -> DialogueBatch:
    """The batch with a sound of another length for each image, or none for image number `silent`."""
    some = samples()
    for number, sample in enumerate(some):
        if number != silent:
            sample.audio = Clip(torch.randn(1600 * (number + 1)), 16000)
    return collated(some, audio_transform=LogMelTransform(0.3))


def tokens_of_loss(model: VisionLanguageModel, prefix: torch.Tensor, ids: list[int], labels: list[int]) -> torch.Tensor:
    """Losses of the supervised tokens of one text behind one prefix (P, H): position i predicts i + 1."""
    text = torch.tensor([ids])
    out = model.decoder(text, torch.ones_like(text), prefix.unsqueeze(0))
    assert out.logits is not None
    targets = torch.tensor(labels)
    predicted = out.logits[0, len(prefix) - 1 : -1]
    return F.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="none")[targets != IGNORED]


def test_the_loss_is_that_of_the_decoder_behind_each_rows_own_image() -> None:
    model, batch = built(tiny_vlm()).eval(), collated(samples())
    losses = []
    for row, image in enumerate(batch.image_of_row.tolist()):
        pixels = batch.image[image : image + 1]
        tower = model.vision_encoder
        tokens = tower.projection(tower.backbone(pixels).tokens)
        prefix = model.fusion.projections["image"](tokens[0]) + model.fusion.marks["image"]
        real = batch.attention_mask[row]
        losses.append(
            tokens_of_loss(model, prefix, batch.input_ids[row, real].tolist(), batch.labels[row, real].tolist())
        )
    output = model(batch)
    torch.testing.assert_close(output.loss, torch.cat(losses).mean())
    assert len(torch.cat(losses)) == batch.num_supervised
    assert output.logs["loss"] == output.loss
    assert not output.logs["loss"].requires_grad


def test_another_image_is_another_loss_and_each_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built(tiny_vlm()).eval(), collated(samples())
    seen = []
    read = model.vision_encoder.backbone.forward

    def counting(image: torch.Tensor, **settings: bool) -> object:
        seen.append(len(image))
        return read(image, **settings)

    monkeypatch.setattr(model.vision_encoder.backbone, "forward", counting)
    loss = model(batch).loss
    assert seen == [3]
    assert len(batch.image_of_row) == 5
    assert abs(model(replace(batch, image=batch.image.roll(1, dims=0))).loss - loss) > 1e-3


def test_exact_match_is_the_share_of_rows_that_greedy_choice_gets_right() -> None:
    model, batch = built(tiny_vlm()).eval(), collated(samples())
    assert model(batch).logs["exact_match"] == 0
    prefix = model.prefix(batch)
    rows = batch.image_of_row
    out = model.decoder(batch.input_ids, batch.attention_mask, prefix.tokens[rows], None, prefix.mask[rows])
    likeliest = out.logits[:, prefix.tokens.shape[1] - 1 : -1].argmax(dim=-1)
    labels = batch.labels.clone()
    labels[1] = torch.where(labels[1] == IGNORED, IGNORED, likeliest[1])
    assert model(replace(batch, labels=labels)).logs["exact_match"] == pytest.approx(1 / 5)
    assert "exact_match" not in model.train()(batch).logs


@pytest.mark.parametrize("kind", KINDS)
def test_the_prefix_is_of_the_kind_that_is_asked_for(kind: str) -> None:
    model, batch = built(tiny_vlm(*of_kind(kind))).eval(), collated(samples())
    prefix = model.prefix(batch)
    tower = model.vision_encoder
    features = tower.backbone(batch.image)
    tokens = {
        "tokens": lambda: tower.projection(features.tokens),
        "cls_patches": lambda: tower.projection(torch.cat([features.summary[:, None], features.tokens], dim=1)),
        "perceiver": lambda: tower.perceiver(features.tokens, None),
        "memory": lambda: features.memory,
    }[kind]()
    assert prefix.tokens.shape == (3, KINDS[kind], 16)
    assert prefix.mask.all()
    torch.testing.assert_close(prefix.tokens, model.fusion.projections["image"](tokens) + model.fusion.marks["image"])


@pytest.mark.parametrize(("kind", "mend"), [("memory", "no memory tokens"), ("perceiver", "has none")])
def test_a_kind_that_the_tower_of_a_run_has_not_is_refused(kind: str, mend: str) -> None:
    config = tiny_vlm()
    decoder = replace(config.decoder, prefix=kind)
    with pytest.raises(ConfigError, match=rf"^decoder.prefix: {kind}, but the image tower .*{mend}.*; use tokens$"):
        build_vlm(replace(config, decoder=decoder), 280)


def patches_after(model: VisionLanguageModel, image: torch.Tensor, blocks: int) -> torch.Tensor:
    """The patches behind so many blocks of a tower that is whole, and its last norm."""
    vit = model.vision_encoder.backbone
    x = vit._embed(image)
    for block in vit.transformer.blocks[:blocks]:
        x = block(x)
    return vit.transformer.norm(x)[:, 1:]


@pytest.mark.parametrize(
    ("settings", "blocks"),
    [
        (("vision_encoder.freeze=true",), 1),
        (("vision_encoder.freeze=true", "decoder.prefix_layer=last"), 2),
        ((), 2),
        (("decoder.prefix_layer=penultimate",), 1),
        (("vision_encoder.freeze=true", "vision_encoder.pooling=mean"), 2),
    ],
)
def test_the_block_that_the_prefix_is_taken_after(settings: tuple[str, ...], blocks: int) -> None:
    batch = collated(samples())
    torch.manual_seed(3)
    whole = build_vlm(tiny_vlm(*settings, "decoder.prefix_layer=last"), 280).eval()
    torch.manual_seed(3)
    model = build_vlm(tiny_vlm(*settings), 280).eval()
    assert len(model.vision_encoder.backbone.transformer.blocks) == blocks
    found = model.vision_encoder.read(batch.image).tokens
    torch.testing.assert_close(found, whole.vision_encoder.projection(patches_after(whole, batch.image, blocks)))


def test_a_tower_of_one_block_has_none_to_spare() -> None:
    with pytest.raises(ConfigError, match=r"^decoder.prefix_layer: the tower has a single block; use last$"):
        build_vlm(tiny_vlm("vision_encoder.depth=1", "decoder.prefix_layer=penultimate"), 280)


def without_gradient(model: VisionLanguageModel, batch: DialogueBatch) -> tuple[set[str], set[str]]:
    """Names of trainable parameters that the loss does not reach: at all, and with more than zeros."""
    model.train()(batch).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    return (
        {name for name, grad in trained.items() if grad is None},
        {name for name, grad in trained.items() if grad is not None and not grad.any() and "bias" not in name},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_trm_stands_on_is_trained(kind: str) -> None:
    assert without_gradient(built(tiny_vlm(*of_kind(kind))), collated(samples())) == (set(), set())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [(), ("decoder.use_lora=true", "decoder.use_trm_recursion=true", "decoder.lora.dropout=0")]
)
def test_everything_trainable_around_qwen_is_trained(kind: str, settings: tuple[str, ...], qwen: Path) -> None:
    config = tiny_qwen_vlm(qwen, *of_kind(kind), *settings)
    batch = collated(samples(), TemplateChat(chat_tokenizer()))
    assert without_gradient(built(config), batch) == (set(), set())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("hears", [False, True])
def test_every_strategy_is_trained(strategy: str, hears: bool) -> None:
    config = tiny_vlm(f"fusion.strategy={strategy}", *STRATEGIES[strategy], *(SOUND if hears else ()))
    batch = with_sounds() if hears else collated(samples())
    # One modality alone has all of the gate, wherever that stands.
    useless = {"fusion.gate.weight"} if strategy == "gated" and not hears else set()
    assert without_gradient(built(config), batch) == (set(), useless)


@pytest.mark.parametrize("make", [clip, siglip, dinov2])
@pytest.mark.parametrize("settings", [(), ("vision_encoder.use_perceiver=true", "decoder.prefix=perceiver")])
def test_a_pretrained_tower_keeps_nothing_that_is_not_trained(
    make: Callable[[Path], Path], settings: tuple[str, ...], tmp_path: Path
) -> None:
    config = on_pretrained(make(tmp_path), *settings)
    assert without_gradient(built(config), collated(samples())) == (set(), set())


@pytest.mark.parametrize("silent", [None, 1])
def test_sounds_stand_behind_the_patches_and_a_missing_one_is_masked(silent: int | None) -> None:
    model, batch = built(tiny_vlm(*SOUND)).eval(), with_sounds(silent=silent)
    prefix = model.prefix(batch)
    num = prefix.tokens.shape[1] - 4
    real = prefix.mask[:, 4:].sum(dim=1).tolist()
    assert num > 0
    assert prefix.mask[:, :4].all()
    assert real[0] < real[2] == num
    assert (real[1] == 0) == (silent == 1)
    loss = model(batch).loss
    assert abs(model(replace(batch, audio=batch.audio.flip(2))).loss - loss) > 1e-4


def test_what_stands_in_a_row_without_a_sound_changes_nothing() -> None:
    model, batch = built(tiny_vlm(*SOUND)).eval(), with_sounds(silent=1)
    other = batch.audio.clone()
    other[1] = 9.0
    assert torch.equal(model(replace(batch, audio=other)).loss, model(batch).loss)


def test_a_tower_of_a_run_stays_as_it_is() -> None:
    from impresa.config.runs import adopt_towers

    model = build_vlm(adopt_towers(tiny_vlm_on(finished_run())), 280)
    tower = model.vision_encoder
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    for _ in range(2):
        model.train()(collated(samples())).loss.backward()
        model.commit(1)
    assert not any(module.training for module in tower.modules())
    assert all(p.grad is None and not p.requires_grad for p in tower.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert model.fusion.training
    assert all(p.grad is not None for p in model.fusion.parameters())


def test_its_weights_are_those_of_the_run_and_its_patches_are_what_that_model_has() -> None:
    import impresa
    from impresa.config.runs import adopt_towers

    model = build_vlm(adopt_towers(tiny_vlm_on(finished_run())), 280).eval()
    theirs = impresa.load(finished_run(), "cpu").model.vision_encoder
    batch = collated(samples())
    expected = theirs(batch.image, return_tokens=True).tokens
    torch.testing.assert_close(model.vision_encoder.read(batch.image).tokens, expected)


def test_a_tower_of_a_run_can_be_trained_on() -> None:
    from impresa.config.runs import adopt_towers

    config = adopt_towers(tiny_vlm_on(finished_run(), "vision_encoder.freeze=false"))
    model = build_vlm(config, 280)
    assert without_gradient(model, collated(samples())) == (set(), set())
    assert model.vision_encoder.backbone.memory.training
    state = model.vision_encoder.backbone.memory.state.clone()
    model.commit(1)
    assert not torch.equal(model.vision_encoder.backbone.memory.state, state)


def on_pretrained(folder: Path, *settings: str) -> ExperimentConfig:
    """A model whose image tower is that of a folder."""
    tower = [key for key in TOWER if key.split("=")[0].endswith(("checkpoint", "embed_dim"))]
    return tiny_vlm(
        *("vision_encoder.dim=512", "vision_encoder.depth=12", "vision_encoder.num_heads=8"),
        *("vision_encoder.patch_size=16", f"vision_encoder.backbone={folder}"),
        *tower,
        *settings,
    )


@pytest.mark.parametrize("layer", ["penultimate", "last"])
@pytest.mark.parametrize("make", [clip, dinov2])
def test_the_class_token_of_a_pretrained_tower_is_the_first_of_its_sequence(
    make: Callable[[Path], Path], layer: str, tmp_path: Path
) -> None:
    folder, batch = make(tmp_path), collated(samples())
    settings = ("vision_encoder.freeze=true", "decoder.prefix=cls_patches", f"decoder.prefix_layer={layer}")
    model = built(on_pretrained(folder, *settings)).eval()
    theirs = transformers.AutoModel.from_pretrained(folder)
    vision = getattr(theirs, "vision_model", theirs)
    more = {"interpolate_pos_encoding": True} if make is clip else {}
    hidden = vision(batch.image, output_hidden_states=True, **more).hidden_states
    norm = vision.post_layernorm if make is clip else vision.layernorm
    expected = norm(hidden[-2 if layer == "penultimate" else -1])
    found = model.vision_encoder.read(batch.image).tokens
    torch.testing.assert_close(found, model.vision_encoder.projection(expected), atol=1e-5, rtol=1e-4)
    assert model.prefix(batch).tokens.shape[1] == expected.shape[1]


def test_a_tower_without_a_class_token_is_refused_with_the_reason(tmp_path: Path) -> None:
    line = r"^decoder.prefix: cls_patches, but Siglip\w+ has no class token; use tokens$"
    with pytest.raises(ConfigError, match=line):
        build_vlm(on_pretrained(siglip(tmp_path), "decoder.prefix=cls_patches"), 280)


def test_a_class_token_that_a_run_has_not_trained_is_refused() -> None:
    config = replace(tiny_vlm().vision_encoder, checkpoint="runs/a", pooling="mean")
    VisionEncoder(replace(config, freeze=False), 16).keep("cls_patches", drop_last_block=False)
    VisionEncoder(replace(config, pooling="cls"), 16).keep("cls_patches", drop_last_block=False)
    with pytest.raises(ConfigError, match=r"^decoder.prefix: cls_patches, .* which is untrained; use tokens, or set v"):
        VisionEncoder(config, 16).keep("cls_patches", drop_last_block=False)


def test_the_class_token_costs_what_one_token_more_costs() -> None:
    batch, spent = collated(samples()), {}
    for kind in ("tokens", "cls_patches"):
        model, meter = built(tiny_vlm(f"decoder.prefix={kind}")).eval(), CostMeter({})
        with meter.step(len(batch), 1):
            prefix = model.prefix(batch).tokens
            model.decoder(batch.input_ids, batch.attention_mask, prefix[batch.image_of_row], batch.labels)
        spent[kind] = prefix.shape[1], meter.spent().flops_per_sample
    assert spent["cls_patches"][0] == spent["tokens"][0] + 1
    assert spent["cls_patches"][1] > spent["tokens"][1]


CONVNET = ("vision_encoder.backbone=convnet", "vision_encoder.num_heads=8")


@pytest.mark.parametrize(
    ("settings", "num"),
    [
        ((), 4),
        (("decoder.prefix_layer=penultimate", "vision_encoder.depth=4"), 4),
        ((*PERCEIVER, "decoder.prefix=perceiver"), 5),
    ],
    ids=["tokens", "penultimate", "perceiver"],
)
def test_a_convolutional_net_gives_a_prefix_of_its_cells(settings: tuple[str, ...], num: int) -> None:
    model, batch = built(tiny_vlm(*CONVNET, *settings)), collated(samples())
    assert model.prefix(batch).tokens.shape[1] == num
    assert without_gradient(model, batch) == (set(), set())


def test_patch_dropout_shortens_the_prefix_in_training_alone() -> None:
    model, batch = built(tiny_vlm("vision_encoder.patch_dropout=0.5")), collated(samples())
    assert [model.train(mode).prefix(batch).tokens.shape[1] for mode in (True, False)] == [2, 4]
    assert without_gradient(model, batch) == (set(), set())


def test_a_switch_in_the_decoder_leaves_the_start_of_the_rest() -> None:
    states = []
    for settings in ((), ("decoder.recursion.num_layers=2",)):
        torch.manual_seed(0)
        states.append(build_vlm(tiny_vlm(*settings), chat().vocab_size).state_dict())
    for name in ("vision_encoder.backbone.positions", "fusion.projections.image.weight"):
        assert torch.equal(states[0][name], states[1][name])


def test_vqa_accuracy_counts_a_hit_as_much_as_people_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tiny_vlm()).eval()
    turn = with_references("how many?", ["two"] * 3 + ["three"] * 2)
    batch = collated([Sample(id=f"s{i}", image=picture(i), dialogues=(Dialogue((turn,)),)) for i in range(2)])
    run = model.decoder.forward
    hits = torch.tensor([True, False])
    monkeypatch.setattr(model.decoder, "forward", lambda *args, **more: replace(run(*args, **more), hits=hits))
    # Three of five: 2 of the others in three fives less one, 3 in two: (3 * 2 / 3 + 2) / 5.
    assert model(batch).logs["vqa_accuracy"] == pytest.approx(0.8 / 2)
