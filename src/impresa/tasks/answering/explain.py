"""An answer looked into: where its tokens look, and how it comes about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from impresa.data.dialogue import CAPTION_PROMPTS
from impresa.errors import ConfigError
from impresa.inside.answers import MAX_TOKENS, answer_sections
from impresa.inside.drawing import marked, seen_square
from impresa.inside.explanation import Explanation, Maps, Method, Section, tiles_of
from impresa.inside.towers import SeenByTower
from impresa.layers.recording import recording_attention
from impresa.tasks.answering.batch import DialogueBatch

if TYPE_CHECKING:
    from impresa.tasks.answering.answerer import AnsweringModel


@torch.inference_mode()
def explain_answer(model: AnsweringModel, picture: Image.Image, question: str | None, method: Method) -> Explanation:
    """Explain the likeliest answer about an RGB image; see `UsableModel.explain`. Without a question the model is asked
    to describe the image."""
    transform, network = model.preprocessing.image, model.model
    question = CAPTION_PROMPTS[0] if question is None else question
    prompt = model.chat.fitted_prompt((), question, model.max_len, model.generation.max_new_tokens)
    batch = DialogueBatch(ids=["0"], image=transform(picture)[None])
    written, answer = model.likeliest(model.prefix(batch), prompt, MAX_TOKENS)
    sections: list[Section] = []
    notes = ["The model is shown the whole image here, without its tiles."] if model.tiles > 1 else []
    on_patches = None
    if answer.finish_reason == "length" and len(written) == MAX_TOKENS:
        notes.append(f"The answer is shown up to its token {MAX_TOKENS}.")
    with recording_attention(network) as recorded:
        prefix = model.prefix(batch)
        try:
            on_patches = SeenByTower(network.vision_encoder, recorded, method).prefix(network.fusion)
        except ConfigError as error:
            notes.append(str(error))
        sections += answer_sections(
            network.decoder,
            model.chat,
            prefix,
            prompt=prompt.ids,
            answer=written,
            recorded=recorded,
            on_patches=on_patches,
        )
    if on_patches is not None and not _are_patches(on_patches):
        note = "What each token of the prefix was made of."
        sections.append(Maps("Prefix tokens on the picture", note, tiles_of("prefix", on_patches)))
    headline = f"{question.strip()} — {answer or '(no answer)'}"
    square = seen_square(picture, transform)
    return Explanation(square, marked(picture, transform), tuple(sections), headline, tuple(notes))


def _are_patches(on_patches: torch.Tensor) -> bool:
    """True if each prefix token is one patch and nothing else, which needs no picture."""
    num = on_patches.shape[1]
    return on_patches.shape[0] == num and bool((on_patches == torch.eye(num, device=on_patches.device)).all())
