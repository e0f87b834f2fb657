"""A trained vision-language model in use: images and questions in, answers out."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from impresa.config.decoder import GenerationConfig
from impresa.config.experiment import ExperimentConfig
from impresa.config.types import listed_names
from impresa.config.validate import generation_settings
from impresa.data.audio import RATE_HZ, Clip
from impresa.data.chat import Prompt
from impresa.data.dialogue import CAPTION_PROMPTS, Turn, asks_for_caption
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.decoders.base import refuse_streamed_beams
from impresa.errors import DataError
from impresa.fusion import Prefix
from impresa.inside.explanation import Explanation, Method
from impresa.run_dir.golden import Golden, packed
from impresa.tasks.answering.answer import Answer, Reader
from impresa.tasks.answering.batch import DialogueBatch
from impresa.tasks.answering.explain import explain_answer
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.tasks.answering.subjects import Subject, batch_of, golden_inputs, read_subjects, subject_of, subjects_of
from impresa.tasks.arguments import Named, inputs_of, kind, naming, text_of, texts_of, whole_number
from impresa.tasks.base import UsableModel
from impresa.tasks.devices import Device, cpu_by_default
from impresa.tasks.inputs import Picture, Sound, small_images

logger = logging.getLogger(__name__)

NO_CAPTIONS = (
    "caption: no question of the training asked for a description, so this model has not learned any; "
    "ask what it was asked, or train it on captions as well"
)
Pictures = Picture | Sequence[Picture] | None
"""What one question is about: an image, several in a list, or none beside a sound."""
Generation = GenerationConfig | Mapping[str, Any]
"""Settings of generation: all of them, or some by name, beside which the run's own hold."""


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
        self.max_images, self.tiles = config.dataset.max_images, config.decoder.tiles
        self.chat = preprocessing.chat
        self._says_no_captions = preprocessing.captions is False
        # Trained parameters keep `requires_grad`, which decides what is saved.
        super().__init__(_as_loaded(model).eval(), config, preprocessing, device)

    @cpu_by_default()
    def ask(
        self,
        images: Picture | Sequence[Pictures] | None,
        questions: str | Sequence[str],
        *,
        sounds: Sound | Sequence[Sound | None] | None = None,
        batch_size: int = 32,
        generation: Generation | None = None,
    ) -> Answer | list[Answer]:
        """Answer questions about images, sounds, or both.

        Args:
            images: one image, or several, see `Picture`; a tensor (N, C, H, W) is N images. Each is asked about by
                itself; a list within the list holds the images of one question (`[[a, b], [c]]`), up to
                `dataset.max_images`. None, also as an item of a list, where a question is about a sound alone.
            questions: one question for every image, several for one image, or as many as images, pair by pair.
            sounds: as many sounds as images, for a model with an audio encoder; without images the questions are about
                them.
            batch_size: questions that are answered at a time.
            generation: settings of generation, all (a `GenerationConfig`) or some (a dict, such as
                `{"temperature": 0.7, "seed": 3}`) in place of the run's own.

        Returns:
            The answer for one image and one question, else a list of them in order. An `Answer` is a `str` with
            `finish_reason` and `question_cut`.

        Raises:
            DataError: an image or sound cannot be read, a question is empty, or the numbers do not fit; the line begins
                with the argument.
            ConfigError: there is no such setting, or it is out of bounds or has no effect.
        """
        asked, size = texts_of("questions", questions), whole_number("batch_size", batch_size)
        subjects, is_one = subjects_of(images, sounds)
        said = asked.items * (len(subjects) if asked.is_one else 1)
        subject_of_question = [0] * len(said) if is_one else list(range(len(subjects)))
        if len(subject_of_question) != len(said):
            what = "sounds" if images is None else "images"
            raise DataError(f"ask: {len(said)} questions about {len(subjects)} {what}; give one, or as many as {what}")
        settings = generation_settings(generation, self.generation)
        prompts = [self._prompt(question, (), settings) for question in said]
        answers: list[Answer] = []
        for start in range(0, len(said), size):
            rows = subject_of_question[start : start + size]
            chosen = sorted(set(rows))
            prefix = self._prefix([subjects[i] for i in chosen])
            index = torch.tensor([chosen.index(row) for row in rows], device=self.device)
            answers += self.answer(prefix, index, prompts[start : start + size], settings, start)
        return answers[0] if is_one and asked.is_one else answers

    def caption(self, images: Picture | Sequence[Pictures] | None, **settings: Any) -> Answer | list[Answer]:
        """Describe images, or `sounds`, in answer to the request that captions are learned with; arguments and result
        as in `ask`."""
        return self.ask(images, CAPTION_PROMPTS[0], **settings)

    def stream(
        self,
        image: Pictures,
        question: str,
        *,
        turns: Sequence[Turn] = (),
        sound: Sound | None = None,
        generation: Generation | None = None,
    ) -> Generator[str, None, Answer]:
        """The answer piece by piece, each computed when it is asked for; the generator returns the whole.

        Args:
            image: the image that is asked about, or a list of several; None for a sound alone.
            question: the question.
            turns: the dialogue before it.
            sound: the sound, for a model with an audio encoder.
            generation: as in `ask`; beams cannot be streamed.

        Raises:
            DataError: as `ask`.
            ConfigError: as `ask`, or `generation` has beams.
        """
        settings = generation_settings(generation, self.generation)
        refuse_streamed_beams(settings)
        before = inputs_of("turns", turns, lambda _: False).items
        for name, turn in before:
            if not isinstance(turn, Turn):
                raise DataError(f"{name}: got {kind(turn)}; give impresa.data.dialogue.Turn(question, answer)")
        prompt = self._prompt(text_of("question", question), [turn for _, turn in before], settings)
        prefix = self._prefix([subject_of(Named("image", image), Named("sound", sound))])
        ids = torch.tensor([prompt.ids], device=self.device)
        columns = self.model.decoder.write(
            ids,
            torch.ones_like(ids),
            prefix.tokens,
            prefix.mask,
            settings=settings,
            end_ids=self.chat.end_ids,
            pad_id=self.chat.pad_id,
        )
        return self._reader(settings).pieces((int(column) for column in columns), prompt)

    def _reader(self, settings: GenerationConfig) -> Reader:
        return Reader(self.chat, listed_names(settings.stop))

    @torch.inference_mode()
    def answer(
        self,
        prefix: Prefix,
        index: Tensor,
        prompts: Sequence[Prompt],
        generation: GenerationConfig | None = None,
        first: int = 0,
    ) -> list[Answer]:
        """Answer prompts, for callers that have encoded the images.

        Args:
            prefix: of the images.
            index: (R,) int64, the image that each prompt is about.
            prompts: R prompts, as `ChatFormat.fitted_prompt` gives them.
            generation: checked settings; None stands for the run's own.
            first: the number of the first prompt among all that are asked; under a seed it chooses what is drawn.
        """
        settings = generation or self.generation
        reader = self._reader(settings)
        longest, pad = max(len(prompt.ids) for prompt in prompts), self.chat.pad_id
        numbers = [longest - len(prompt.ids) for prompt in prompts]  # of the tokens on the left that are padding
        rows = [[pad] * num + prompt.ids for num, prompt in zip(numbers, prompts, strict=True)]
        mask = torch.arange(longest)[None] >= torch.tensor(numbers)[:, None]
        found = self.model.decoder.generate(
            torch.tensor(rows, device=self.device),
            mask.to(self.device),
            prefix.tokens[index],
            prefix.mask[index],
            settings=settings,
            end_ids=self.chat.end_ids,
            pad_id=pad,
            rows=range(first, first + len(prompts)),
            is_stop=reader.is_stop if reader.stops else None,
        )
        return [reader.answer(ids, prompt) for ids, prompt in zip(found.tolist(), prompts, strict=True)]

    @torch.inference_mode()
    def likeliest(self, prefix: Prefix, prompt: Prompt, most: int) -> tuple[list[int], Answer]:
        """The token ids, `most` at most, that greedy decoding writes behind a prompt, the end token included, and the
        answer that they are."""
        settings = replace(self.generation, temperature=0.0, num_beams=1)
        settings = replace(settings, max_new_tokens=min(most, settings.max_new_tokens))
        ids = torch.tensor([prompt.ids], device=self.device)
        reader = self._reader(settings)
        given = (ids, torch.ones_like(ids), prefix.tokens, prefix.mask)
        written: list[int] = []
        for column in self.model.decoder.write(
            *given, settings=settings, end_ids=self.chat.end_ids, pad_id=self.chat.pad_id
        ):
            written.append(int(column))
            if reader.is_stop(written):
                break
        return written, reader.answer(written, prompt)

    def explained(self, picture: Image.Image, words: str | None, method: Method, max_rows: int) -> Explanation:
        if self.preprocessing.pictures is False:
            raise DataError("image: this model was trained on sounds alone, so there is nothing to explain in an image")
        return explain_answer(self, picture, words, method)

    @torch.inference_mode()
    def prefix(self, batch: DialogueBatch) -> Prefix:
        """The prefix of a batch, on the model's device."""
        self.model.eval()  # the caller may have trained it in between
        return self.model.prefix(batch.to(self.device))

    def _prompt(self, question: Named, turns: Sequence[Turn], settings: GenerationConfig) -> Prompt:
        if self._says_no_captions and isinstance(question.value, str) and asks_for_caption(question.value):
            logger.warning(NO_CAPTIONS)
            self._says_no_captions = False  # once is enough
        with naming(question.name):
            return self.chat.fitted_prompt(turns, question.value, self.max_len, settings.max_new_tokens)

    @cpu_by_default()
    def _prefix(self, subjects: Sequence[Subject]) -> Prefix:
        return self.prefix(batch_of(subjects, self.preprocessing, self.max_images, self.tiles))

    def golden_tensors(self, examples: Sequence[Sample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        subjects: list[tuple[list[Tensor], Clip | None]] = []
        asked: list[str] = []
        for sample in examples:
            images = small_images([sample], self.preprocessing.image.size)
            sound = None if self.preprocessing.audio is None else sample.audio
            if sample.dialogues and (images or sound is not None):
                subjects.append((images, sound))
                asked.append(sample.dialogues[0].turns[0].question)
        if not subjects:
            subjects, asked = [self._plain_example()], ["what is there?"]
        tensors, metadata = golden_inputs(subjects)
        read = read_subjects(Golden(tensors, metadata), len(asked), self.preprocessing.image.size)
        return {**tensors, "states": self._states(read, asked)}, {**metadata, "questions": packed(asked)}

    def _plain_example(self) -> tuple[list[Tensor], Clip | None]:
        """A grey image, or silence for a model that was shown no image: for data of which nothing can be used."""
        if self.preprocessing.pictures is False:
            return [], Clip(torch.zeros(RATE_HZ // 10), RATE_HZ)
        size = self.preprocessing.image.size
        return [torch.full((3, size, size), 128, dtype=torch.uint8)], None

    def golden_pairs(self, golden: Golden) -> list[tuple[Tensor, Tensor]]:
        states = golden.outputs("states", self.model.decoder.hidden_size)
        subjects = read_subjects(golden, len(states), self.preprocessing.image.size)
        return [(self._states(subjects, golden.texts("questions", len(states))), states)]

    @torch.inference_mode()
    def _states(self, subjects: Sequence[Subject], questions: Sequence[str]) -> Tensor:
        """(N, H) float32 on the CPU: the hidden states that the first tokens of the answers are predicted from."""
        states = torch.zeros(len(subjects), self.model.decoder.hidden_size)
        for row, (subject, question) in enumerate(zip(subjects, questions, strict=True)):
            prefix = self._prefix([subject])
            ids = torch.tensor([self.chat.prompt((), question, self.max_len)], device=self.device)
            output = self.model.decoder(ids, torch.ones_like(ids, dtype=torch.bool), prefix.tokens, None, prefix.mask)
            states[row] = output.hidden[0, -1].float().cpu()
        return states


def _as_loaded(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model in float32, whatever it was trained in, but for a frozen language model, which is large."""
    frozen = {id(parameter) for parameter in model.decoder.parameters() if not parameter.requires_grad}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in frozen:
            tensor.data = tensor.data.float()
    return model
