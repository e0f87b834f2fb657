"""What only a GPU can show: the same numbers as on a CPU, half precision with its scaler, pinned copies, NCCL, NF4.

`pytest -m cuda` runs these alone; without a GPU they are skipped. `benchmarks/gpu.py` runs them too.
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import impresa
from impresa.config import ExperimentConfig
from impresa.config.decoder import DecoderConfig, GenerationConfig
from impresa.config.losses import LossConfig
from impresa.config.optimization import Precision
from impresa.decoders.base import Decoder
from impresa.decoders.pretrained import PretrainedDecoder
from impresa.decoders.trm import TRMDecoder
from impresa.losses.contrastive import ContrastiveLoss
from impresa.training.distributed import Group
from impresa.training.loop import Training, steps_of, train_step
from impresa.training.parts import build_parts
from impresa.training.run import set_up, train
from pictures import photo
from run_metrics import interrupt_after, rows
from tiny_qwen import HIDDEN, VOCAB, save_qwen
from tiny_run import finished_run, tiny_experiment
from tiny_vlm import tiny_vlm

DEVICE = "cuda"
GPU = ("trainer.accelerator=gpu", "trainer.devices=1")
COMMAND = ["impresa", "train", "shapes"]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def training_of(config: ExperimentConfig, device: str) -> Training:
    training = set_up(config, build_parts(config, None), Group(torch.device(device)))
    training.state.model.train()
    return training


def losses(config: ExperimentConfig, device: str, num_steps: int = 6) -> list[float]:
    """Of the first steps from equal weights on equal batches."""
    training = training_of(config, device)
    steps = islice(steps_of(training.train_loader, 1), num_steps)
    return [float(train_step(training, batches)["loss"]) for batches in steps]


NO_DROPOUT = ("vision_encoder.drop_rate=0", "text_encoder.drop_rate=0")
"""Dropout draws other numbers on each kind of device."""


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_training_takes_the_steps_of_a_cpu(loss: str) -> None:
    config = tiny_experiment(*NO_DROPOUT, f"losses.type={loss}")
    assert losses(config, DEVICE) == pytest.approx(losses(config, "cpu"), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_half_precision_stays_near_float32(precision: Precision) -> None:
    found = losses(tiny_experiment(*NO_DROPOUT, f"optimization.precision={precision}"), DEVICE)
    assert found == pytest.approx(losses(tiny_experiment(*NO_DROPOUT), DEVICE), rel=0.05)


def test_an_overflow_in_float16_skips_the_step_and_lowers_the_scale() -> None:
    training = training_of(tiny_experiment("optimization.precision=16-mixed"), DEVICE)
    scaler = training.state.precision.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    before = {name: p.detach().clone() for name, p in training.state.model.named_parameters()}
    train_step(training, next(steps_of(training.train_loader, 1)))
    assert scaler.get_scale() < 2.0**40
    assert all(torch.equal(before[name], p) for name, p in training.state.model.named_parameters())


@pytest.mark.parametrize("duplicates", ["ignore", "positive"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_loss_and_gradients_are_those_of_a_cpu(kind: Any, duplicates: Any) -> None:
    a, b = torch.randn(2, 40, 32)
    captions = [f"caption {i // 2}" for i in range(40)]

    def value_and_gradients(device: str) -> list[Tensor]:
        config = LossConfig(type=kind, duplicates=duplicates, row_chunk=16)
        loss = ContrastiveLoss(config, mrl_dimensions=(8, 16)).to(device)
        image, text = (x.to(device).detach().requires_grad_() for x in (a, b))
        value = loss({"image": image, "text": text}, captions=captions).loss
        return [x.cpu() for x in (value, *torch.autograd.grad(value, (image, text, loss.logit_scale)))]

    for on_gpu, on_cpu in zip(value_and_gradients(DEVICE), value_and_gradients("cpu"), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-6)


def test_embeddings_are_those_of_a_cpu() -> None:
    images, texts = [photo(20 + i, 20) for i in range(3)], ["a red circle", "two squares"]
    on_gpu, on_cpu = impresa.load(finished_run(), device=DEVICE), impresa.load(finished_run(), device="cpu")
    torch.testing.assert_close(on_gpu.encode_image(images).cpu(), on_cpu.encode_image(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(on_gpu.encode_text(texts).cpu(), on_cpu.encode_text(texts), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_equals_a_straight_one(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_experiment(*GPU, f"dataset.num_workers={workers}", "trainer.deterministic=true")
    straight = train(config, tmp_path / "straight", command=COMMAND)
    with monkeypatch.context() as patch:
        interrupt_after(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "resumed", command=COMMAND)
    resumed = train(config, tmp_path / "resumed", command=COMMAND, resume=True)
    assert rows(resumed) == rows(straight)


def test_a_vision_language_run_trains_and_answers(tmp_path: Path) -> None:
    run_dir = train(tiny_vlm(*GPU), tmp_path / "run", command=COMMAND)
    answer = impresa.load(run_dir, device=DEVICE).ask(photo(20, 20), "what colour?")
    assert isinstance(answer, str)


def decoder_of(kind: str, folder: Path) -> Decoder:
    if kind == "trm":
        return TRMDecoder(DecoderConfig(type="trm", dim=HIDDEN, num_heads=4), VOCAB)
    return PretrainedDecoder(DecoderConfig(model=str(save_qwen(folder)), use_trm_recursion=kind == "recursive"))


@pytest.mark.parametrize("kind", ["trm", "qwen", "recursive"])
def test_every_cached_token_is_the_likeliest_without_the_cache(kind: str, tmp_path: Path) -> None:
    decoder = decoder_of(kind, tmp_path).to(DEVICE).eval()
    prefix, prompt = torch.randn(2, 3, decoder.hidden_size).to(DEVICE), torch.randint(VOCAB, (2, 4)).to(DEVICE)
    rules: dict[str, Any] = {"settings": GenerationConfig(max_new_tokens=8), "end_ids": (), "pad_id": 0}
    new = decoder.generate(prompt, torch.ones_like(prompt), prefix, **rules)
    ids = torch.cat((prompt, new[:, :-1]), dim=1)
    with torch.no_grad():
        logits = decoder(ids, torch.ones_like(ids), prefix).logits[:, -new.shape[1] :]
    behind = logits.max(dim=-1).values - logits.gather(2, new[..., None]).squeeze(2)
    assert (behind <= 1e-3 * logits.std()).all()


def test_four_bits_answer_as_their_dequantised_weights_do(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    from impresa.decoders.quantization import quantized_layers

    config = DecoderConfig(model=str(save_qwen(tmp_path)), load_in_4bit=True)
    decoder = PretrainedDecoder(config, precision="bf16-mixed").to(DEVICE)
    for layer in quantized_layers(decoder):
        x = torch.randn(5, layer.in_features, device=DEVICE, dtype=torch.bfloat16)
        weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        expected = torch.nn.functional.linear(x.float(), weight, None if layer.bias is None else layer.bias.float())
        assert (layer(x).float() - expected).norm() <= 0.01 * expected.norm()


def test_only_the_adapters_of_a_four_bit_model_learn(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = DecoderConfig(model=str(save_qwen(tmp_path)), load_in_4bit=True, use_lora=True)
    decoder = PretrainedDecoder(config, precision="bf16-mixed").to(DEVICE).train()
    prefix, ids = torch.randn(2, 3, HIDDEN, device=DEVICE), torch.randint(VOCAB, (2, 6)).to(DEVICE)
    trained = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    found = []
    for _ in range(12):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = decoder(ids, torch.ones_like(ids), prefix, ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert all(map(math.isfinite, found))
    assert found[-1] < 0.8 * found[0]
    assert all("lora_" in name for name, p in decoder.named_parameters() if p.requires_grad)


def test_a_process_group_of_nccl_adds_and_gathers(tmp_path: Path) -> None:
    from torch import distributed

    distributed.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        everyone: list[Any] = [None]
        distributed.all_gather_object(everyone, ["a"])
        total = torch.ones(3, device=DEVICE)
        distributed.all_reduce(total)
        assert everyone == [["a"]]
        assert total.tolist() == [1, 1, 1]
    finally:
        distributed.destroy_process_group()
