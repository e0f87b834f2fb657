"""A trained vision-language model in use: images and questions in, answers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impresa.config.experiment import ExperimentConfig, GenerationConfig
from impresa.data.chat import ChatFormat
from impresa.data.dialogue import CAPTION_PROMPTS, Turn
from impresa.data.dialogue import ask as said
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.decoders.base import refuse_streamed_beams
from impresa.errors import DataError
from impresa.fusion import Prefix
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.tasks.arguments import Named, inputs_of, kind, naming, text_of, texts_of, whole_number
from impresa.tasks.base import UsableModel
from impresa.tasks.devices import Device
from impresa.tasks.inputs import Picture, Sound, features_of, images_of, pixels_of, small_images, sounds_of

_REPLACEMENT = "\ufffd"


class AnsweringModel(UsableModel):
    """A vision-language model with its own preprocessing; `impresa.load` returns one for a run with a decoder.

    Arguments are those of `UsableModel`. All but a frozen language model is put into float32, and the experiment's
    `decoder.generation` are the defaults of generation.
    """

    model: VisionLanguageModel

    def __init__(
        self,
        model: VisionLanguageModel,
        config: ExperimentConfig,
        preprocessing: Preprocessing,
        device: Device | None = None,
    ) -> None:
        assert config.decoder is not None
        self.generation: GenerationConfig = config.decoder.generation
        self.max_len = config.decoder.max_len
        self.chat = preprocessing.chat
        # Trained parameters keep `requires_grad`, which decides what is saved.
        super().__init__(_as_loaded(model).eval(), config, preprocessing, device)

    def ask(
        self,
        images: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        *,
        sounds: Sound | Sequence[Sound] | None = None,
        batch_size: int = 32,
        generation: GenerationConfig | None = None,
    ) -> str | list[str]:
        """Answer questions about images.

        Args:
            images: one image, or several, see `Picture`; a tensor (N, C, H, W) is N images.
            questions: one question for every image, several for one image, or as many as images, pair by pair.
            sounds: as many sounds as images, for a model with an audio encoder.
            batch_size: questions that are answered at a time.
            generation: settings of generation; None stands for the run's own.

        Returns:
            The answer for one image and one question, else a list of them in order.

        Raises:
            DataError: an image or sound cannot be read, a question is empty, or the numbers do not fit; the line begins
                with the argument.
        """
        seen, asked = images_of("images", images), texts_of("questions", questions)
        pictures, size = seen.items, whole_number("batch_size", batch_size)
        heard = None if sounds is None else sounds_of("sounds", sounds).items
        said = asked.items * (len(pictures) if asked.is_one else 1)
        image_of_question = [0] * len(said) if seen.is_one else list(range(len(pictures)))
        if len(image_of_question) != len(said):
            fault = f"ask: {len(said)} questions about {len(pictures)} images"
            raise DataError(f"{fault}; give one, or as many as images")
        if heard is not None and len(heard) != len(pictures):
            raise DataError(f"ask: {len(heard)} sounds for {len(pictures)} images; give as many of each")
        settings = generation or self.generation
        prompts = [self._prompt(question, (), settings) for question in said]
        answers: list[str] = []
        for start in range(0, len(said), size):
            rows = image_of_question[start : start + size]
            chosen = sorted(set(rows))
            prefix = self._prefix([pictures[i] for i in chosen], heard and [heard[i] for i in chosen])
            index = torch.tensor([chosen.index(row) for row in rows], device=self.device)
            answers += self.answer(prefix, index, prompts[start : start + size], settings)
        return answers[0] if seen.is_one and asked.is_one else answers

    def caption(self, images: Picture | Sequence[Picture], **settings: Any) -> str | list[str]:
        """Describe images; arguments and result as in `ask`."""
        return self.ask(images, CAPTION_PROMPTS[0], **settings)

    def stream(
        self,
        image: Picture,
        question: str,
        *,
        turns: Sequence[Turn] = (),
        sound: Sound | None = None,
        generation: GenerationConfig | None = None,
    ) -> Generator[str, None, None]:
        """The answer piece by piece, as it is generated; `close()`, or dropping it, ends it early.

        Args:
            image: the image that is asked about.
            question: the question.
            turns: the dialogue before it.
            sound: for a model with an audio encoder.
            generation: as in `ask`; beams cannot be streamed.

        Raises:
            DataError: as `ask`.
            ConfigError: `generation` has beams.
        """
        settings = generation or self.generation
        refuse_streamed_beams(settings)
        before = inputs_of("turns", turns, lambda _: False).items
        for name, turn in before:
            if not isinstance(turn, Turn):
                raise DataError(f"{name}: got {kind(turn)}; give impresa.data.dialogue.Turn(question, answer)")
        prompt = self._prompt(text_of("question", question), [turn for _, turn in before], settings)
        prefix = self._prefix([Named("image", image)], None if sound is None else [Named("sound", sound)])
        return self._pieces(prefix, prompt, settings)

    def _pieces(self, prefix: Prefix, prompt: list[int], settings: GenerationConfig) -> Generator[str, None, None]:
        """The answer to one prompt, generated in a thread that ends when this generator is closed."""
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        abandoned = Event()

        def generate() -> None:
            try:
                index = torch.zeros(1, dtype=torch.long, device=self.device)
                self.answer(prefix, index, [prompt], settings, _Pieces(self.chat, pieces.put, abandoned))
                pieces.put(None)
            except _Abandoned:
                pass
            except BaseException as error:  # it is raised where the pieces are read
                pieces.put(error)

        Thread(target=generate, daemon=True).start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            abandoned.set()

    @torch.inference_mode()
    def answer(
        self,
        prefix: Prefix,
        index: Tensor,
        prompts: Sequence[list[int]],
        generation: GenerationConfig | None = None,
        streamer: Any = None,
    ) -> list[str]:
        """Answer prompts, for callers that have encoded the images.

        Args:
            prefix: of the images.
            index: (R,) int64, the image that each prompt is about.
            prompts: token ids of R prompts, as `ChatFormat.prompt` gives them.
            generation: as in `ask`.
            streamer: gets the tokens of a single prompt as they come.
        """
        longest, pad = max(map(len, prompts)), self.chat.pad_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts], device=self.device)
        found = self.model.decoder.generate(
            ids,
            mask,
            prefix.tokens[index],
            prefix.mask[index],
            settings=generation or self.generation,
            end_ids=self.chat.end_ids,
            pad_id=pad,
            streamer=streamer,
        )

        def is_text(token: int) -> bool:
            return token not in self.chat.end_ids

        return [self.chat.decode(list(takewhile(is_text, row))).strip() for row in found.tolist()]

    @torch.inference_mode()
    def prefix(self, batch: DialogueBatch) -> Prefix:
        """The prefix of a batch, on the model's device."""
        self.model.eval()  # the caller may have trained it in between
        return self.model.prefix(batch.to(self.device))

    def _prompt(self, question: Named, turns: Sequence[Turn], settings: GenerationConfig) -> list[int]:
        with naming(question.name):
            return self.chat.prompt(turns, question.value, self.max_len, settings.max_new_tokens)

    def _prefix(self, images: Sequence[Named | Picture], sounds: Sequence[Named | Sound] | None) -> Prefix:
        pixels = pixels_of(images, self.preprocessing.image)
        batch = DialogueBatch(ids=[str(i) for i in range(len(images))], image=pixels)
        if sounds is not None:
            if self.preprocessing.audio is None:
                raise DataError("ask: this model has no audio encoder; leave the sounds out")
            batch.audio, batch.audio_mask = features_of(sounds, self.preprocessing.audio)
        return self.prefix(batch)

    def golden_tensors(self, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        examples = [sample for sample in examples if sample.image and sample.dialogues] or [self._plain_example()]
        images = small_images(examples, self.preprocessing.image.size)
        questions = [sample.dialogues[0].turns[0].question for sample in examples]
        tensors = {f"image_{i}": image for i, image in enumerate(images)}
        return {**tensors, "states": self._states(images, questions)}, {"questions": json.dumps(questions)}

    def golden_pairs(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
        images = [tensors[f"image_{i}"] for i in range(len(tensors["states"]))]
        return [(self._states(images, json.loads(metadata["questions"])), tensors["states"])]

    def _plain_example(self) -> Sample:
        """A grey image, for data in which no question has an image."""
        size = self.preprocessing.image.size
        return Sample("grey", Image.new("RGB", (size, size), "grey"), dialogues=(said("what is there?", "nothing"),))

    @torch.inference_mode()
    def _states(self, images: Sequence[Tensor], questions: Sequence[str]) -> Tensor:
        """(N, H) float32 on the CPU: the hidden states that the first tokens of the answers are predicted from."""
        states = torch.zeros(len(images), self.model.decoder.hidden_size)
        for row, (image, question) in enumerate(zip(images, questions, strict=True)):
            prefix = self._prefix([image], None)
            ids = torch.tensor([self.chat.prompt((), question, self.max_len)], device=self.device)
            output = self.model.decoder(ids, torch.ones_like(ids, dtype=torch.bool), prefix.tokens, None, prefix.mask)
            states[row] = output.hidden[0, -1].float().cpu()
        return states


class _Abandoned(Exception):  # noqa: N818 - nothing is wrong
    """Ends the generation of an answer that was closed."""


class _Pieces:
    """A streamer for transformers: turns tokens into text as soon as they make whole characters.

    transformers' own `TextIteratorStreamer` holds each word back until the next one begins.
    """

    def __init__(self, chat: ChatFormat, put: Callable[[str], None], abandoned: Event) -> None:
        self._chat, self._put, self._abandoned = chat, put, abandoned
        self._ids: list[int] = []
        self._given = ""

    def put(self, value: Tensor) -> None:
        """Take the next token. The first call has the prompt, which is empty: it was given as embeddings."""
        if self._abandoned.is_set():
            raise _Abandoned
        self._ids += [token for token in value.flatten().tolist() if token not in self._chat.end_ids]
        text = self._chat.decode(self._ids).strip()
        if text.endswith(_REPLACEMENT) or not text.startswith(self._given):
            return
        if text != self._given:
            self._put(text[len(self._given) :])
            self._given = text

    def end(self) -> None:
        """Give the text that was held back."""
        rest = self._chat.decode(self._ids).strip()[len(self._given) :]
        if rest:
            self._put(rest)


def _as_loaded(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model in float32, whatever it was trained in, but for a frozen language model, which is large."""
    frozen = {id(parameter) for parameter in model.decoder.parameters() if not parameter.requires_grad}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in frozen:
            tensor.data = tensor.data.float()
    return model
