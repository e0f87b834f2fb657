"""Without memory our towers are CLIP's: weights of small random `CLIPModel`s give the same embeddings and gradients."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from impresa.config.dataset import DatasetConfig
from impresa.config.encoder import EncoderConfig
from impresa.config.experiment import ExperimentConfig
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.build import build_alignment
from impresa.tasks.alignment.model import AlignmentModel

transformers = pytest.importorskip("transformers")

B, S, V, END, PAD, MAX_LEN = 5, 24, 60, 59, 1, 16
LENGTHS = (4, 11, 7, 2, 9)
Activation = Literal["gelu", "quick_gelu"]


def reference(activation: Activation) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": V,
            "max_position_embeddings": MAX_LEN,
            "bos_token_id": 0,
            "eos_token_id": END,
            "pad_token_id": PAD,
            "hidden_act": activation,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "image_size": S,
            "patch_size": 8,
            "hidden_act": activation,
        },
        projection_dim=20,
    )
    model = transformers.CLIPModel(config)
    # transformers starts biases at zero and norms at one: random ones show whether each is in its place
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "class_embedding" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def ours(activation: Activation) -> AlignmentModel:
    common = {"embed_dim": 20, "activation": activation, "projection": "none"}
    vision = EncoderConfig(
        dim=48, depth=2, num_heads=6, patch_size=8, pre_norm=True, patch_bias=False, mlp_ratio=4.0, **common
    )
    text = EncoderConfig(backbone="transformer", dim=32, depth=3, num_heads=4, mlp_ratio=2.0, max_len=MAX_LEN, **common)
    config = ExperimentConfig(dataset=DatasetConfig(image_size=S), vision_encoder=vision, text_encoder=text)
    return build_alignment(config, V, END).eval()


def translate(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights (or gradients) of a `CLIPModel` under our names."""
    vision, text = "vision_encoder.backbone", "text_encoder.backbone"
    found = {
        f"{vision}.cls": theirs["vision_model.embeddings.class_embedding"],
        f"{vision}.patch_embedding.weight": theirs["vision_model.embeddings.patch_embedding.weight"].flatten(1),
        f"{vision}.positions": theirs["vision_model.embeddings.position_embedding.weight"],
        f"{text}.token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        f"{text}.positions": theirs["text_model.embeddings.position_embedding.weight"],
        "vision_encoder.head.weight": theirs["visual_projection.weight"],
        "text_encoder.head.weight": theirs["text_projection.weight"],
        "loss.logit_scale": theirs["logit_scale"],
    }
    for kind in ("weight", "bias"):
        found[f"{vision}.pre_norm.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        found[f"{vision}.transformer.norm.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        found[f"{text}.transformer.norm.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
        for our_tower, their_tower, depth in ((vision, "vision_model", 2), (text, "text_model", 3)):
            for i in range(depth):
                block, layer = f"{our_tower}.transformer.blocks.{i}", f"{their_tower}.encoder.layers.{i}"
                attention = f"{layer}.self_attn"
                found |= {
                    f"{block}.attention_norm.{kind}": theirs[f"{layer}.layer_norm1.{kind}"],
                    f"{block}.attention.query.{kind}": theirs[f"{attention}.q_proj.{kind}"],
                    f"{block}.attention.key_value.{kind}": torch.cat(
                        [theirs[f"{attention}.k_proj.{kind}"], theirs[f"{attention}.v_proj.{kind}"]]
                    ),
                    f"{block}.attention.out.{kind}": theirs[f"{attention}.out_proj.{kind}"],
                    f"{block}.mlp_norm.{kind}": theirs[f"{layer}.layer_norm2.{kind}"],
                    f"{block}.mlp.up.{kind}": theirs[f"{layer}.mlp.fc1.{kind}"],
                    f"{block}.mlp.down.{kind}": theirs[f"{layer}.mlp.fc2.{kind}"],
                }
    return found


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(2, END, (B, MAX_LEN), generator=generator)
    mask = torch.arange(MAX_LEN) < lengths[:, None]
    ids[torch.arange(B), lengths - 1] = END
    return torch.randn(B, 3, S, S, generator=generator), ids.masked_fill(~mask, PAD), mask


def assert_near(actual: torch.Tensor, expected: torch.Tensor, name: str = "") -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-5, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_embeddings_loss_and_gradients_equal_clips(activation: Activation) -> None:
    theirs, model = reference(activation), ours(activation)
    model.load_state_dict(translate(theirs.state_dict()))
    image, ids, mask = inputs()
    expected = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=image, return_loss=True)
    longest = max(LENGTHS)
    batch = Batch(ids=[""] * B, image=image, input_ids=ids[:, :longest], attention_mask=mask[:, :longest])
    output = model(batch)

    unit = torch.nn.functional.normalize
    assert_near(unit(output.embeddings["image"]), expected.image_embeds)
    assert_near(unit(output.embeddings["text"]), expected.text_embeds)
    assert_near(output.loss, expected.loss)

    output.loss.backward()
    expected.loss.backward()
    wanted = translate({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in model.named_parameters():
        if name.endswith(
            "key_value.bias"
        ):  # the loss does not depend on the bias of the keys: rounding noise on both sides
            half = len(parameter) // 2
            assert_near(parameter.grad[half:], wanted[name][half:], name)
            assert parameter.grad[:half].norm() < 1e-5 * parameter.grad[half:].norm()
        else:
            assert_near(parameter.grad, wanted[name], name)


def test_features_of_all_tokens_equal_clips() -> None:
    theirs, model = reference("gelu"), ours("gelu")
    model.load_state_dict(translate(theirs.state_dict()))
    image, ids, mask = inputs()
    vision = theirs.vision_model(image).last_hidden_state[:, 1:]
    tokens = model.vision_encoder(image, return_tokens=True).tokens
    assert_near(tokens, theirs.vision_model.post_layernorm(vision))
    words = model.text_encoder(ids, mask, return_tokens=True).tokens
    assert_near(words[mask], theirs.text_model(ids, mask.long()).last_hidden_state[mask])


def test_the_reference_tells_the_activations_apart() -> None:
    theirs, model = reference("quick_gelu"), ours("gelu")
    model.load_state_dict(translate(theirs.state_dict()))
    image = inputs()[0]
    a = torch.nn.functional.normalize(model.embed_image(image))
    b = torch.nn.functional.normalize(theirs.visual_projection(theirs.vision_model(image).pooler_output))
    assert (a - b).norm() / b.norm() > 1e-4
