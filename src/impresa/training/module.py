"""The Lightning module: what one optimizer step does, from the batches to the committed weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, distributed, nn

from impresa.config.experiment import ExperimentConfig
from impresa.errors import CheckpointError, TrainingError
from impresa.evaluation.retrieval import retrieval_metrics
from impresa.layers.state import trained_state
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.model import AlignmentOutput
from impresa.tasks.answering.batch import DialogueBatch
from impresa.training.averaging import WeightAverage, copy_weights
from impresa.training.data import DataModule
from impresa.training.optimizer import build_optimizer
from impresa.training.plan import Plan
from impresa.training.schedule import Schedule

AnyBatch = Batch | DialogueBatch

NUM_RETRIEVED = 4096
"""Validation samples, of all processes together, that retrieval is measured on; more would take long on a CPU."""


class TrainingModule(LightningModule):
    """Trains a model whose forward pass turns a batch into a loss.

    To Lightning, one batch is one optimizer step: the list of all batches whose gradients are added up in it. So every
    interval counts optimizer steps, a checkpoint always lies between two of them, and a last group with fewer batches
    is weighted right.

    Args:
        model: turns a batch into a `ModelOutput`; its `commit` follows every optimizer step.
        config: the experiment.
        plan: length of the run.
        schedule: the learning rate.
        data: the data; a checkpoint keeps its place in them.
    """

    def __init__(
        self, model: nn.Module, config: ExperimentConfig, plan: Plan, schedule: Schedule, data: DataModule
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # what is frozen is not in a checkpoint; `load_trained` checks the rest
        self.model = model
        self.config = config
        self.plan = plan
        self.schedule = schedule
        self.data = data
        self.step = 0
        """Optimizer steps done since the start of the run, over all resumptions."""
        self.gradient_norm = torch.tensor(0.0)
        decay = config.optimization.ema_decay
        self.average = None if decay is None else WeightAverage(self, decay)
        """What is validated and kept in place of the weights themselves."""
        self._validated: list[tuple[Tensor, Tensor, list[str]]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optimization)

    def training_step(self, batches: list[AnyBatch], _: int) -> dict[str, Tensor]:
        """One optimizer step over `batches`.

        Returns:
            Scalars: `loss` (mean over the samples, or over the tokens of their answers), what the model logs of the
            last batch, `lr`, `gradient_norm`, and of an alignment `mean_cosine` (between the embeddings of different
            samples of the last batch).
        """
        seed_step(self.config.seed, self.step, self.global_rank)
        optimizer = self._optimizer()
        loss = torch.zeros((), device=self.device)
        for position, (batch, weight) in enumerate(zip(batches, self._weights(batches), strict=True)):
            with self._gradients_stay_here(position + 1 < len(batches)):
                output = self.model(batch)
                self.manual_backward(output.loss * weight)
            loss += output.loss.detach() * weight
        loss = self._mean_over_processes(loss)
        self._refuse_bad_loss(loss, batches)
        lr = self._set_learning_rate(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        self.step += 1
        self.model.commit(self.step)  # type: ignore[operator]
        if self.average is not None:
            self.average.update(self.step)
        logs = {name: value for name, value in output.logs.items() if name != "loss"}
        if isinstance(output, AlignmentOutput):
            modality, embeddings = next(iter(output.embeddings.items()))
            logs["mean_cosine"] = mean_cosine(embeddings.detach()[output.present.get(modality, slice(None))])
        return {"loss": loss, **logs, "lr": torch.tensor(lr), "gradient_norm": self.gradient_norm}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients; they are complete, averaged over processes and unscaled here."""
        largest = self.config.optimization.clip_grad or float("inf")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, largest)
        rescales = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # it skips such a step by itself
        if not rescales and not torch.isfinite(self.gradient_norm):
            raise TrainingError(self._diverged("the gradient is not finite"))

    def on_validation_epoch_start(self) -> None:
        if self.average is not None:
            self.average.swap()

    def validation_step(self, batch: Batch | DialogueBatch, _: int) -> None:
        output = self.model(batch)
        metrics = {f"val_{name}": value for name, value in output.logs.items() if not name.startswith("logit_")}
        metrics["val_loss"] = output.loss
        if isinstance(batch, DialogueBatch):  # the loss is one of tokens, this one of dialogues
            self._log_mean({"val_exact_match": metrics.pop("val_exact_match")}, len(batch.dialogues))
        self._log_mean(metrics, batch.weight)
        if not isinstance(output, AlignmentOutput) or not isinstance(batch, Batch):
            return
        num_kept = sum(len(captions) for *_, captions in self._validated) * self.trainer.world_size
        if {"image", "text"} <= output.embeddings.keys() and num_kept < NUM_RETRIEVED:
            rows = [bool(caption) for caption in batch.captions]
            if batch.image_present is not None:
                rows = (batch.image_present.cpu() & torch.tensor(rows)).tolist()
            image, text = (output.embeddings[name].float().cpu()[torch.tensor(rows)] for name in ("image", "text"))
            self._validated.append((image, text, list(compress(batch.captions, rows))))

    def on_validation_epoch_end(self) -> None:
        """Perplexity of the answers; of an alignment retrieval over the first validation samples, one caption for each
        image."""
        if self.average is not None:
            self.average.swap()  # here and not later: what is saved after a validation are both, each in its place
        if self.config.decoder is not None:
            perplexity = self.trainer.callback_metrics["val_loss"].exp()
            self.log("val_perplexity", perplexity, logger=False, sync_dist=True)
        validated, self._validated = self._gathered(self._validated), []
        if not any(captions for *_, captions in validated):
            return
        images = torch.cat([image for image, _, _ in validated])
        texts = torch.cat([text for _, text, _ in validated])
        captions = [caption for _, _, captions in validated for caption in captions]
        found = retrieval_metrics(images, texts, torch.arange(len(images)), captions)
        metrics = {
            "val_image_to_text_recall_at_1": found.image_to_text.recall_at[1],
            "val_text_to_image_recall_at_1": found.text_to_image.recall_at[1],
        }
        self.log_dict(metrics, logger=False, sync_dist=True)  # the same in every process

    def load_trained(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over what a checkpoint would be used with: its weights, or their average if there is one. What is
        frozen is not in it.

        Raises:
            CheckpointError: they are not those of this model.
        """
        self._refuse_other_weights(checkpoint["state_dict"])
        self.load_state_dict(checkpoint["state_dict"], strict=False)
        average = checkpoint.get("average", {})
        # By parameter, because the state dict has a second name for an LM head that is the embedding table.
        copy_weights(average, {name: p for name, p in self.named_parameters() if name in average})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = trained_state(self)
        for name in checkpoint["state_dict"].keys() - kept.keys():
            del checkpoint["state_dict"][name]
        # Lightning's own progress counts pieces between two validations; the step says all that a resumption needs.
        checkpoint["global_step"] = self.step
        checkpoint["epoch"] = self.plan.epoch_of(self.step)
        # The loader is a step ahead, so the place in the data comes from the step as well.
        epoch, steps = divmod(self.step, self.plan.steps_per_epoch)
        place = {"epoch": epoch, "next_batch": steps * self.config.trainer.accumulate_grad_batches}
        checkpoint["data"] = {**self.data.state_dict(), **place}
        if self.average is not None:
            checkpoint["average"] = self.average.state_dict()
        del checkpoint["loops"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse_other_weights(checkpoint["state_dict"])
        self.step = checkpoint["global_step"]
        if self.average is not None:
            self.average.load_state_dict(checkpoint["average"])

    def _refuse_other_weights(self, weights: Mapping[str, Tensor]) -> None:
        other = weights.keys() ^ trained_state(self).keys()
        if other:
            raise CheckpointError(
                f"checkpoint: does not fit the model ({min(other)}); resume with the run's own config"
            )

    def _optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        return optimizer  # type: ignore[return-value]

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Set every group's learning rate for the coming step; returns that of a group at `optimization.lr`."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.step + 1, group["peak_lr"])
        return self.schedule.learning_rate(self.step + 1, self.config.optimization.lr)

    def _weights(self, batches: list[AnyBatch]) -> list[float]:
        """What each batch counts in the step.

        Of an alignment: its share of the samples, those of the other processes included. Of dialogues: its share of all
        processes' supervised tokens, times their number, because gradients are averaged over them: the loss is the mean
        over the tokens of the step, wherever they are.
        """
        sizes = torch.tensor([batch.weight for batch in batches], dtype=torch.float64)
        world, every = self.trainer.world_size, sizes
        by_token = isinstance(batches[0], DialogueBatch)
        if world > 1 and (by_token or len(batches) > 1):
            copied = sizes.to(self.device, copy=True)  # it is summed up in place
            every = self.trainer.strategy.reduce(copied, reduce_op="sum").cpu()
        return ((world * sizes if by_token else every) / every.sum()).tolist()

    def _gradients_stay_here(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once per step, with its last batch."""
        strategy = self.trainer.strategy
        if more_to_come and isinstance(strategy, ParallelStrategy):
            return strategy.block_backward_sync()
        return nullcontext()

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op="mean") if self.trainer.world_size > 1 else value

    def _refuse_bad_loss(self, loss: Tensor, batches: list[AnyBatch]) -> None:
        if torch.isfinite(loss):  # the mean, so that all processes stop or none
            return
        for batch in batches:
            if batch.image is not None and not torch.isfinite(batch.image).all():
                bad = [name for name, image in zip(batch.ids, batch.image, strict=True) if not image.isfinite().all()]
                raise TrainingError(f"step {self.step + 1}: not finite pixels in {', '.join(bad)}; remove these images")
        raise TrainingError(self._diverged(f"the loss is {loss.item()}"))

    def _diverged(self, what: str) -> str:
        optimization = self.config.optimization
        mend = f"lower optimization.lr ({optimization.lr:g}) or lengthen optimization.warmup_epochs"
        if optimization.clip_grad == 0:
            mend += ", and clip gradients (optimization.clip_grad=1)"
        if optimization.precision == "16-mixed":
            mend += "; float16 overflows easily: optimization.precision=bf16-mixed does not"
        return f"step {self.step + 1}: {what}, most likely because the steps are too large; {mend}"

    def _log_mean(self, metrics: Mapping[str, Tensor], weight: int) -> None:
        """Log means over the validation, to which this batch gives its values with a weight."""
        # Lightning averages the weights over processes in whole numbers; as multiples of their number they stay exact.
        weight *= self.trainer.world_size
        self.log_dict(metrics, on_epoch=True, batch_size=weight, sync_dist=True, logger=False)

    def _gathered(self, parts: list[Any]) -> list[Any]:
        """`parts` of all processes, in the order of their ranks."""
        if self.trainer.world_size == 1:
            return parts
        everyone: list[list[Any]] = [[] for _ in range(self.trainer.world_size)]
        distributed.all_gather_object(everyone, parts)
        return [part for parts in everyone for part in parts]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimizer step, so that dropout depends on nothing but (seed, step, rank)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine between different rows of (B, E), a scalar; 1 means that the model maps everything to one point."""
    unit = nn.functional.normalize(embeddings.float(), dim=-1)
    num_rows = len(unit)
    total = unit.sum(dim=0).square().sum()
    return (total - num_rows) / max(num_rows * (num_rows - 1), 1)
