"""Words put before texts that are embedded: those of the run by name, or those of a call."""

from __future__ import annotations

from impresa.config.describe import listed
from impresa.config.encoder import PromptsConfig
from impresa.errors import DataError
from impresa.tasks.arguments import Inputs, Named, shown, text_of


def prompted(inputs: Inputs, prompts: PromptsConfig, prompt_name: str | None, prompt: str | None) -> Inputs:
    """The texts with a prompt before each; those of no prompt are as they were.

    Args:
        inputs: the texts.
        prompts: of the run.
        prompt_name: which of them.
        prompt: one that the run need not have.

    Raises:
        DataError: the run has no prompt of this name, `prompt` is no text, or both are given.
    """
    words = prompt_words(prompts, prompt_name)
    if prompt is not None:
        if words is not None:
            raise DataError("prompt: contradicts prompt_name; give one of them")
        words = text_of("prompt", prompt).value
    if words is None:
        return inputs
    return Inputs([Named(name, f"{words}{text}") for name, text in inputs.items], inputs.is_one)


def prompt_words(prompts: PromptsConfig, prompt_name: str | None, argument: str = "prompt_name") -> str | None:
    """The prompt of this name; None for no name. A run without such a prompt is a `DataError`, which names those that
    it has."""
    if prompt_name is None:
        return None
    every = {"query": prompts.query, "document": prompts.document}
    known = {name: words for name, words in every.items() if words is not None}
    if isinstance(prompt_name, str) and prompt_name in known:
        return known[prompt_name]
    if not known:
        fix = "leave it out, or train with text_encoder.prompts"
        raise DataError(f"{argument}: {shown(prompt_name)}, but this run has no prompts; {fix}")
    raise DataError(f"{argument}: {shown(prompt_name)} is no prompt of this run; it has {listed(known, 'and')}")
