"""A run's preprocessing as transformers' own tokenizer and image processor."""

from __future__ import annotations

import copy
from typing import Any

from PIL.Image import Image
from tokenizers import normalizers

from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Tokenizer
from impresa.data.tokenizers import PretrainedTokenizer
from impresa.export.backbones import Inexpressible

_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def tokenizer_in_transformers(tokenizer: Tokenizer) -> Any:
    """A tokenizer of transformers that gives the same ids; texts are as long as the tower reads.

    Raises:
        Inexpressible: it leaves out unknown words, or is of a kind that cannot be told to lower the case.
    """
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PretrainedTokenizer):
        return _of_pretrained(tokenizer)
    if tokenizer.leaves_out:
        raise Inexpressible("a tokenizer that leaves out unknown words is in no other library")
    special = (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)
    start, end, pad = map(tokenizer.backend.id_to_token, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        model_max_length=tokenizer.max_len,
        split_special_tokens=True,  # a caption may contain the words "<|end|>", which are text there
        model_input_names=["input_ids", "attention_mask"],
    )


def _of_pretrained(tokenizer: PretrainedTokenizer) -> Any:
    own = copy.deepcopy(tokenizer.backend)
    own.model_max_length = own.init_kwargs["model_max_length"] = tokenizer.max_len
    if tokenizer.pads_fully:  # for a tower that sees the padding, which a mask would hide
        own.model_input_names = own.init_kwargs["model_input_names"] = ["input_ids"]
    if tokenizer.lower_case:
        backend = getattr(own, "backend_tokenizer", None)
        if backend is None:
            raise Inexpressible(f"{type(own).__name__} cannot be told to lower the case of texts")
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    return own


def image_processor_in_transformers(transform: ImageTransform) -> Any:
    """An image processor of transformers. It gives the same pixels of squares, and with `squash` of all images; with
    `crop` it resizes the whole before it cuts, where ours cuts first, so that edges lie up to half a pixel elsewhere.

    Raises:
        Inexpressible: it pads images, which no processor of CLIP or SigLIP does.
    """
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    common: dict[str, Any] = {
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        "resample": _FILTERS[transform.resample],
    }
    square = {"height": transform.size, "width": transform.size}
    match transform.resize:
        case "squash":
            return SiglipImageProcessorPil(size=square, do_convert_rgb=True, **common)
        case "crop":
            edge = round(transform.size / transform.crop_fraction)
            return CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=square, **common)
        case _:
            raise Inexpressible(f"dataset.resize: {transform.resize} is in no image processor of transformers")


def gives_the_same_pixels(transform: ImageTransform) -> bool:
    """True where the image processor gives ours for images of any shape."""
    return transform.resize == "squash"


def as_they_are(images: list[Image], size: int) -> dict[str, bool]:
    """Arguments of an image processor that keep squares of so many pixels a side as they are; none for others."""
    are_squares = all(image.size == (size, size) for image in images)
    return {"do_resize": False, "do_center_crop": False} if are_squares else {}
