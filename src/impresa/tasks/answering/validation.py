"""The validation of a model that answers."""

from __future__ import annotations

import torch

from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.base import ModelOutput
from impresa.tasks.validation import Means, Processes, validated

_SHARES = ("val_exact_match", "val_vqa_accuracy")


class AnsweringValidation:
    """Loss and logs of the model as means over tokens, shares of right answers over dialogues, and perplexity."""

    def __init__(self, group: Processes) -> None:
        self._group = group
        self._by_token, self._by_dialogue = Means(), Means()

    def add(self, batch: DialogueBatch, output: ModelOutput) -> None:
        values = validated(output)
        shares = {name: values.pop(name) for name in _SHARES if name in values}
        self._by_dialogue.add(shares, len(batch.dialogues))
        self._by_token.add(values, batch.weight)

    def metrics(self) -> dict[str, float]:
        found = {**self._by_dialogue.over(self._group), **self._by_token.over(self._group)}
        found["val_perplexity"] = torch.tensor(found["val_loss"], dtype=torch.float64).exp().item()
        return found
