"""Proof that an exported folder computes what its run does: read in a new process, offline, by its own library.

python -m impresa.export.check FORMAT FOLDER RUN
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from impresa.config.encoder import Modality
from impresa.errors import CheckpointError, ImpresaError
from impresa.export.formats import OF_EMBEDDINGS, OF_OTHER_PROCESSORS, Format, has_our_code

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
BATCH_SIZES = (1, 3, 8)
"""Inputs at a time: exporters take a size that they saw for the only one."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
Reader = Callable[[Modality, list[Any], int], "Tensor"]
"""Inputs of a modality, and a width d, to embeddings (N, d) of length one."""


def check_export(to: Format, written: Path, folder: Path, run_dir: Path) -> None:
    """Raise a `CheckpointError` that says which output differs, or why the folder cannot be read.

    Args:
        to: the format of the folder.
        written: where its files are.
        folder: where they will be, for messages.
        run_dir: the run that they come from.
    """
    command = [sys.executable, "-m", "impresa.export.check", to, str(written), str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | _OFFLINE, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise CheckpointError(f"{folder}: fails its check, and nothing was written ({last}); choose another format")


def differences(to: Format, folder: Path, run_dir: Path) -> Iterator[str]:
    """A line for each output of the folder that is not the run's."""
    if to not in OF_EMBEDDINGS:
        yield from _of_language_model(to, folder, run_dir)
        return
    from impresa.data.preprocessing import read_transforms
    from impresa.export.processors import gives_the_same_pixels
    from impresa.run_dir.load import read_run_config

    vision = read_run_config(run_dir).vision_encoder
    dims = sorted({vision.embed_dim, *(vision.mrl_dimensions if vision.use_mrl else ())})
    transform = read_transforms(run_dir)[0]
    read = _reader(to, folder, transform.size)
    # Where another library cuts squares out of pictures, half a pixel elsewhere, it is given squares.
    cuts = to in OF_OTHER_PROCESSORS and not gives_the_same_pixels(transform) and not has_our_code(folder)
    for modality, golden, expected in _golden(run_dir, vision.embed_dim):
        inputs = [transform.square(picture) for picture in golden] if cuts and modality == "image" else golden
        for dim in dims:
            for size in BATCH_SIZES:
                got = read(modality, list(islice(cycle(inputs), size)), dim)
                wanted = _prefix(expected[[i % len(inputs) for i in range(size)]], dim)
                name = f"{modality} embeddings at {dim} dimensions, batch of {size}"
                yield from _difference(name, got, wanted)


def _difference(name: str, got: Tensor, wanted: Tensor) -> Iterator[str]:
    if got.shape != wanted.shape:
        yield f"{name}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
    elif not (distance := (got - wanted).abs().max().item()) <= TOLERANCE:  # true of a NaN too
        yield f"{name}: differ by {distance:.2g}, more than {TOLERANCE:g}"


def _prefix(embeddings: Tensor, dim: int) -> Tensor:
    from torch.nn import functional as F

    return F.normalize(embeddings[:, :dim].float(), dim=-1)


def _golden(run_dir: Path, width: int) -> Iterator[tuple[Modality, list[Any], Tensor]]:
    """Stored inputs of each modality, and the outputs for them: those that are stored, or where those are of a GPU,
    which rounds otherwise, the run's on this machine."""
    from PIL import Image

    from impresa.data.audio import Clip
    from impresa.data.preprocessing import read_transforms
    from impresa.run_dir.golden import Golden
    from impresa.run_dir.layout import GOLDEN
    from impresa.run_dir.load import load_embedder

    golden, (image, audio) = Golden.read(run_dir / GOLDEN), read_transforms(run_dir)
    inputs: dict[Modality, list[Any]] = {}
    stored = {"image": golden.outputs("image_embeddings", width), "text": golden.outputs("text_embeddings", width)}
    pictures = golden.images(len(stored["image"]), image.size)
    inputs["image"] = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    inputs["text"] = golden.texts("texts", len(stored["text"]))
    if audio is not None:
        stored["audio"] = golden.outputs("audio_embeddings", width)
        inputs["audio"] = [Clip(*sound) for sound in golden.sounds(len(stored["audio"]))]
    own = None if golden.device == "cpu" else _own_reader(load_embedder(run_dir, "cpu"))
    for modality, items in inputs.items():
        if items:
            yield modality, items, stored[modality] if own is None else own(modality, items, width)


def _reader(to: Format, folder: Path, size: int) -> Reader:
    match to:
        case "sentence-transformers":
            from impresa.export.sentence_transformers import reader

            return reader(folder, size)
        case "onnx":
            from impresa.export.onnx import onnx_reader

            return onnx_reader(folder)
        case "transformers":
            from impresa.export.transformers import transformers_reader

            return transformers_reader(folder, size)
        case "open_clip":
            from impresa.export.open_clip import open_clip_reader

            return open_clip_reader(folder)
        case _:
            from impresa.run_dir.load import load_embedder

            return _own_reader(load_embedder(folder, "cpu"))


def _own_reader(model: Any) -> Reader:
    def read(modality: Modality, inputs: list[Any], dim: int) -> Tensor:
        return cast("Tensor", getattr(model, f"encode_{modality}")(inputs, dim=dim))

    return read


def _of_language_model(to: Format, folder: Path, run_dir: Path) -> Iterator[str]:
    """Logits after a prefix of noise and a few words."""
    import json

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from impresa.hub import from_pretrained
    from impresa.run_dir.load import load_answerer

    name, revision = str(folder), None
    if to == "peft":
        base = json.loads((folder / "adapter_config.json").read_text())
        name, revision = base["base_model_name_or_path"], base.get("revision")
    theirs = from_pretrained(AutoModelForCausalLM, name, revision=revision, dtype=torch.float32)
    if to == "peft":
        theirs.load_adapter(str(folder))  # by peft
    theirs.eval()
    ids = torch.tensor([from_pretrained(AutoTokenizer, folder)("a picture of something").input_ids])
    embeddings = theirs.get_input_embeddings()(ids)
    noise = torch.randn(1, 3, embeddings.shape[-1], generator=torch.Generator().manual_seed(0))
    prefix = noise * embeddings.std()
    with torch.inference_mode():
        own = load_answerer(run_dir, "cpu").model.decoder(ids, torch.ones_like(ids), prefix).logits
        got = theirs(inputs_embeds=torch.cat((prefix, embeddings), dim=1)).logits
    scale = own.abs().max().clamp(min=1)
    yield from _difference("logits", got / scale, own / scale)


def main(to: str, folder: str, run_dir: str) -> int:
    """Print the first difference; 1 if there is any."""
    try:
        found = next(differences(cast("Format", to), Path(folder), Path(run_dir)), None)
    except ImpresaError as error:
        found = error.lines[0]
    if found:
        sys.stderr.write(f"{found}\n")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
