"""The vision-language model: encoders, a fusion that makes their tokens a prefix, and a decoder that reads it."""

from __future__ import annotations

from torch import Tensor

from impresa.config.encoder import Modality
from impresa.decoders.base import Decoder
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.output import EncoderOutput
from impresa.encoders.tower import Use
from impresa.encoders.vision import VisionEncoder
from impresa.evaluation.several_answers import LEAST_PEOPLE, vqa_accuracy
from impresa.fusion import ConcatFusion, Fusion, Prefix
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.squares import Place, SquareMarks
from impresa.tasks.base import ModelOutput, TrainableModel
from impresa.tasks.encoders import encode_images, encode_rows

DECODER = "decoder."
"""Prefix of the decoder's names in the state dict."""


class VisionLanguageModel(TrainableModel):
    """Answers questions about images, and sounds if there is an audio encoder.

    Args:
        vision_encoder: encoder of images, reduced to its tokens (`Tower.keep`).
        fusion: makes the prefix; its width is the decoder's.
        decoder: the language model.
        audio_encoder: encoder of sounds, reduced likewise.
        square_marks: joins the squares of a sample that may have several, as images or tiles.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        fusion: Fusion,
        decoder: Decoder,
        *,
        audio_encoder: AudioEncoder | None = None,
        square_marks: SquareMarks | None = None,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.audio_encoder = audio_encoder
        self.fusion = fusion
        self.decoder = decoder
        self.square_marks = square_marks
        self.longest_prefix = 0
        """Tokens of the longest prefix that the batches so far say there can be, without queries."""

    @property
    def use_of_vision(self) -> Use:
        return "tokens"

    def forward(self, batch: DialogueBatch) -> ModelOutput:
        """The loss of the batch's answers: the mean over their tokens.

        In evaluation mode the logs have `exact_match` too, the share of dialogues in which each supervised token is the
        likeliest one; for a dialogue of one turn that is what greedy decoding would answer. Where each question has the
        answers of several people, `vqa_accuracy` counts such a dialogue as much as they agree on it.
        """
        prefix = self.prefix(batch)
        output = self.decoder(
            batch.input_ids,
            batch.attention_mask,
            prefix.tokens,
            batch.labels,
            prefix.mask,
            prefix_of_row=batch.image_of_row,
        )
        logs = {"loss": output.loss.detach()}
        if output.hits is not None:
            hits = output.hits.float()
            logs["exact_match"] = hits.mean()
            if (agreed := _agreed(batch)) is not None:
                logs["vqa_accuracy"] = (hits * hits.new_tensor(agreed)).mean()
        return ModelOutput(output.loss, logs)

    def prefix(self, batch: DialogueBatch) -> Prefix:
        """The decoder's input for the images of each sample, and the sound beside them: (B, P, H) and a mask (B, P)."""
        encoded: dict[Modality, EncoderOutput] = {}
        num_missing = 0
        present = batch.image_present if batch.places is None else None
        finish = None if self.frozen_vision is None else self.frozen_vision.finish
        if (seen := encode_images(self.vision_encoder.read, finish, batch, present)) is not None:
            encoded["image"] = seen
            if self.square_marks is not None:
                encoded["image"], num_missing = self._joined(self.square_marks, seen, batch)
        if batch.audio is not None and self.audio_encoder is not None:
            encoded["audio"] = encode_rows(self.audio_encoder.read, batch.audio_present, batch.audio, batch.audio_mask)
        found = self.fusion(encoded, batch.present)
        if isinstance(self.fusion, ConcatFusion):  # the others make one length of all
            self.longest_prefix = max(self.longest_prefix, found.tokens.shape[1] + num_missing)
            may_have_gaps = self.audio_encoder is not None or self.square_marks is not None
            self.decoder.check_prefix(self.longest_prefix, has_gaps=may_have_gaps)
        return found

    @staticmethod
    def _joined(marks: SquareMarks, encoded: EncoderOutput, batch: DialogueBatch) -> tuple[EncoderOutput, int]:
        """The tokens of each sample's squares in a row, and how many more a sample of the most squares would have."""
        assert encoded.tokens is not None
        if batch.places is None:  # a square of each sample
            places, num_samples = [Place(sample) for sample in range(len(encoded.tokens))], len(encoded.tokens)
        else:
            places, num_samples = batch.places, batch.num_placed
        joined = marks(encoded, places, num_samples)
        assert joined.tokens is not None
        return joined, marks.max_squares * encoded.tokens.shape[1] - joined.tokens.shape[1]

    def facts(self) -> dict[str, str]:
        return {"prefix": f"up to {self.longest_prefix} tokens"} if self.longest_prefix else {}

    def commit(self, step: int) -> None:
        """Update the memory's state; see `TrainableModel.commit`."""
        self.vision_encoder.commit(step)

    def state_to_save(self) -> dict[str, Tensor]:
        """All of the encoders and the fusion, wherever they came from, and the trained part of the decoder."""
        trained = {f"{DECODER}{name}" for name in self.decoder.state_to_save()}
        return {name: t for name, t in self.state_dict().items() if not name.startswith(DECODER) or name in trained}


def _agreed(batch: DialogueBatch) -> list[float] | None:
    """The accuracy that the right answers of each dialogue have; None if some question has too few for one."""
    if any(len(turn.references) < LEAST_PEOPLE for said in batch.dialogues for turn in said.turns):
        return None
    return [
        sum(vqa_accuracy(turn.answer, turn.references) for turn in said.turns) / len(said.turns)
        for said in batch.dialogues
    ]
