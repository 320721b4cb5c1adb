"""The conditioning of a model on class labels or captions, and its prediction."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch

from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families import TextConditioning
from skipdit_cli.families.labels import null_label
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.finite import is_finite
from skipdit_cli.processes import Team
from skipdit_cli.training.data.demand import check_encoders
from skipdit_cli.training.encoded.section import Section, Work
from skipdit_cli.training.encoded.tensor_shard import Tensors, bytes_of
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.fingerprints import fingerprint_of_encoder, fingerprint_of_tokenizer
from skipdit_cli.training.objective.text_conditioning import text_conditioning_of
from skipdit_cli.training.observer import SILENT, Observer

REMEMBERED = 256
"""The number of encoded captions that stay in memory without a store."""


class ClassConditioning:
    """Gives a class-conditional model its labels; a dropped label becomes the null label.

    Args:
        null_label: None for a model that has no null class; no label is then dropped.
    """

    def __init__(self, null_label: int | None):
        self.null_label = null_label

    def predict(
        self,
        model,
        xt: torch.Tensor,
        times: torch.Tensor,
        conditions: Sequence[int],
        dropped: torch.Tensor,
        **arguments,
    ) -> torch.Tensor:
        """Return the model's output.

        Args:
            xt: Noisy latents or pixels (B, C, [F,] h, w).
            times: Timesteps (B,), as the model takes them.
            conditions: B class labels.
            dropped: (B,) bool, whether each label is dropped.
            arguments: Further arguments of the model.
        """
        labels = torch.tensor(conditions)
        if self.null_label is not None:
            labels = torch.where(dropped, self.null_label, labels)
        return model(xt, timestep=times, class_labels=labels.to(xt.device), return_dict=False, **arguments)[0]


class NoConditioning:
    """Calls an unconditional model."""

    def predict(self, model, xt, times, conditions: Sequence[None], dropped, **arguments) -> torch.Tensor:
        """Return the model's output, see ``ClassConditioning.predict``."""
        return model(xt, timestep=times, return_dict=False, **arguments)[0]


class CaptionConditioning:
    """Gives a text-conditional model its captions, encoded by the pipeline's ``encode_prompt``.

    A dropped caption becomes the empty text.

    Args:
        family: How the pipeline's family encodes captions; its text encoders are moved to ``device``.
        store: Keeps encoded captions; None keeps the last ``REMEMBERED`` in memory.
    Raises:
        UsageError: The pipeline has no text encoder.
    """

    def __init__(
        self, family: TextConditioning, device: torch.device, store: Store | None = None, observer: Observer = SILENT
    ):
        self.family, self.observer = family, observer
        parts = family.pipe.components
        check_encoders(name for name, part in parts.items() if part is None)
        names = [name for name, part in parts.items() if name.startswith("text_encoder") and part is not None]
        self.encoders = {name: parts[name].to(device).requires_grad_(False).eval() for name in names}
        self.encode = lru_cache(maxsize=REMEMBERED)(self._encode if store is None else self._kept)
        if store is not None:
            encoders = {name: fingerprint_of_encoder(encoder) for name, encoder in self.encoders.items()}
            tokenizers = {name: fingerprint_of_tokenizer(part) for name, part in parts.items() if "tokenizer" in name}
            kind = {"pipeline": type(family.pipe).__name__, "longest": family.longest()}
            self.section = Section(store, "texts", {**encoders, **tokenizers, **kind})

    def predict(self, model, xt, times, conditions: Sequence[str], dropped, **arguments) -> torch.Tensor:
        """Return the model's output, see ``ClassConditioning.predict``; ``conditions`` are B captions."""
        captions = ["" if drop else caption for caption, drop in zip(conditions, dropped.tolist())]
        batch = self.family.gather([self.encode(caption) for caption in captions])
        batch = {name: tensor.to(xt.device) for name, tensor in batch.items()}
        return self.family.predict(model, xt, times, batch, **arguments)

    def remember(self, captions: Iterable[str]) -> bool:
        """Encode all captions into this process's memory; return whether there is room for them."""
        distinct = sorted(set(captions))
        if len(distinct) > REMEMBERED:
            return False
        for caption in distinct:
            self.encode(caption)
        return True

    def plan(self, captions: Iterable[str], team: Team = Team(), thorough: bool = False) -> Work:
        """Return which captions are to be encoded, the same in every process.

        Args:
            captions: All captions of the data set.
            thorough: Compare the checksums of all shards, also of those that were compared before.
        """
        self.captions = {caption_name(caption): caption for caption in sorted(set(captions))}
        longest = max(self.captions.values(), key=len)
        return self.section.plan(self.captions, lambda: bytes_of(self._encode(longest)), team, thorough)

    def prepare(self, work: Work, team: Team = Team()) -> None:
        """Encode the captions that the store does not hold, each process its share."""
        self.section.fill(work, self._entries, team)

    def _entries(self, names: list[str]) -> Iterator[tuple[str, Tensors]]:
        for name in names:
            yield name, self._encode(self.captions[name])

    def release(self) -> None:
        """Move the text encoders off the device, when all captions are kept."""
        for encoder in self.encoders.values():
            encoder.to("cpu")

    def _kept(self, caption: str) -> Tensors:
        name = caption_name(caption)
        encoded = self.section.read(name)
        if not all(map(is_finite, encoded.values())):
            path = self.section.path(name)
            raise NotFiniteError(f"{path}, the text '{caption[:40]}', holds NaN or infinity; delete it and run again.")
        return encoded

    @torch.no_grad()
    def _encode(self, caption: str) -> Tensors:
        """Return an encoded caption on the CPU, its numbers in float32."""
        with captured_logs() as lines:
            encoded = self.family.encode(caption, next(iter(self.encoders.values())).device)
        if any("truncated" in line for line in lines):
            self.observer.warn(
                f"a text encoder reads no more than the beginning of '{caption[:40]}...'; perhaps also of others.",
                "truncated",
            )
        encoded = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu() for name, tensor in encoded.items()
        }
        broken = next((name for name, tensor in encoded.items() if not is_finite(tensor)), None)
        if broken is not None:
            raise NotFiniteError(f"The text encoder makes NaN or infinity ({broken}) of the text '{caption[:40]}'.")
        return encoded


def caption_name(caption: str) -> str:
    """Return the name of an encoded caption in a store."""
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@contextmanager
def captured_logs() -> Iterator[list[str]]:
    """Collect what diffusers and transformers log, instead of printing it: they quote all of a truncated caption."""
    lines, collector = [], logging.Handler()
    collector.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    former = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [collector]
    try:
        yield lines
    finally:
        for logger, handlers in zip(loggers, former):
            logger.handlers = handlers


def conditioning_of(pipe, device: torch.device, store: Store | None = None, observer: Observer = SILENT):
    """Return the conditioning of a pipeline's transformer: by caption, by class, or none.

    Args:
        device: The device of text encoders.
        store: Keeps encoded captions.
    """
    family = text_conditioning_of(pipe)
    if family is not None:
        return CaptionConditioning(family, device, store, observer)
    config = transformer_of(pipe).config
    return NoConditioning() if config.num_embeds_ada_norm is None else ClassConditioning(null_label(config))
