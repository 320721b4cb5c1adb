"""What a model is told about a sample, and what it answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import torch

from skipdit_cli import console
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families import TextConditioning
from skipdit_cli.families.labels import null_label
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.finite import is_finite
from skipdit_cli.training.data.demand import check_encoders
from skipdit_cli.training.data.store import Store, Tensors, fingerprint, fingerprint_of_tokenizer, of_model
from skipdit_cli.training.objective.text_conditioning import text_conditioning_of

REMEMBERED = 256


class ClassConditioning:
    """Class ids; a dropped one becomes the id that means no class.

    Args:
        null_label: None for a model that has none; then none is dropped.
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
        """The model's output.

        Args:
            xt: (B, C, [F,] h, w).
            times: (B,), as the model is told them.
            conditions: B class ids.
            dropped: (B,) bool.
        """
        labels = torch.tensor(conditions)
        if self.null_label is not None:
            labels = torch.where(dropped, self.null_label, labels)
        return model(xt, timestep=times, class_labels=labels.to(xt.device), return_dict=False, **arguments)[0]


class NoConditioning:
    """A model of nothing but noise and time."""

    def predict(self, model, xt, times, conditions: Sequence[None], dropped, **arguments) -> torch.Tensor:
        return model(xt, timestep=times, return_dict=False, **arguments)[0]


class CaptionConditioning:
    """Captions as the pipeline's own ``encode_prompt`` encodes them; a dropped one becomes the empty text.

    Args:
        family: Of a pipeline with tokenizers and text encoders, which go to ``device``.
        store: Where encoded texts are kept; without it the last ``REMEMBERED`` are, in memory.
    Raises:
        UsageError: The pipeline has no text encoder.
    """

    def __init__(self, family: TextConditioning, device: torch.device, store: Store | None = None):
        self.family, self.store = family, store
        parts = family.pipe.components
        check_encoders(name for name, part in parts.items() if part is None)
        names = [name for name, part in parts.items() if name.startswith("text_encoder") and part is not None]
        self.encoders = {name: parts[name].to(device).requires_grad_(False).eval() for name in names}
        self.encode = lru_cache(maxsize=REMEMBERED)(self._encode if store is None else self._kept)
        if store is not None:
            prints = {name: fingerprint(encoder, of_model(encoder)) for name, encoder in self.encoders.items()}
            readers = {name: fingerprint_of_tokenizer(part) for name, part in parts.items() if "tokenizer" in name}
            self.made = {**prints, **readers, "pipeline": type(family.pipe).__name__, "longest": family.longest()}
        self.cut = False

    def predict(self, model, xt, times, conditions: Sequence[str], dropped, **arguments) -> torch.Tensor:
        texts = ["" if drop else text for text, drop in zip(conditions, dropped.tolist())]
        gathered = self.family.gather([self.encode(text) for text in texts])
        told = {name: tensor.to(xt.device) for name, tensor in gathered.items()}
        return self.family.predict(model, xt, times, told, **arguments)

    def prepare(self, texts: Iterable[str], rank: int = 0, world: int = 1) -> None:
        """Encode and keep what is missing of this process's share of the texts."""
        mine = sorted(set(texts))[rank::world]
        missing = [text for text in mine if self.store.read(self.key(text)) is None]
        if rank == 0:
            console.say(f"{len(mine) - len(missing):,} of {len(mine):,} texts are kept in {self.store.folder}.")
        with console.progress("texts", len(missing)) if missing else nullcontext() as advance:
            for text in missing:
                self._kept(text)
                advance()

    def release(self) -> None:
        """Text encoders off the device: all that is asked for is kept."""
        for encoder in self.encoders.values():
            encoder.to("cpu")

    def key(self, text: str) -> dict:
        return {**self.made, "text": text}

    def _kept(self, text: str) -> Tensors:
        found = self.store.get(self.key(text), lambda: self._encode(text))
        if not all(map(is_finite, found.values())):
            path = self.store.path(self.key(text))
            raise NotFiniteError(f"{path}, the text '{text[:40]}', holds NaN or infinity; delete it and run again.")
        return found

    @torch.no_grad()
    def _encode(self, text: str) -> Tensors:
        """On the CPU, numbers in float32."""
        with told_in_logs() as said:
            encoded = self.family.encode(text, next(iter(self.encoders.values())).device)
        if not self.cut and any("truncated" in line for line in said):
            self.cut = True
            console.warn(
                f"a text encoder reads no more than the beginning of '{text[:40]}...'; perhaps also of others."
            )
        encoded = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).cpu() for name, tensor in encoded.items()
        }
        broken = next((name for name, tensor in encoded.items() if not is_finite(tensor)), None)
        if broken is not None:
            raise NotFiniteError(f"The text encoder makes NaN or infinity ({broken}) of the text '{text[:40]}'.")
        return encoded


@contextmanager
def told_in_logs() -> Iterator[list[str]]:
    """What diffusers and transformers log in the block, instead of their printing it: of a text that is too long, all
    that is cut off."""
    said, note = [], logging.Handler()
    note.emit = lambda record: said.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    held = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = [note]
    try:
        yield said
    finally:
        for logger, handlers in zip(loggers, held):
            logger.handlers = handlers


def conditioning_of(pipe, device: torch.device, store: Store | None = None):
    """What the pipeline's transformer is told.

    Args:
        store: Where encoded texts are kept.
    """
    family = text_conditioning_of(pipe)
    if family is not None:
        return CaptionConditioning(family, device, store)
    config = transformer_of(pipe).config
    return NoConditioning() if config.num_embeds_ada_norm is None else ClassConditioning(null_label(config))
