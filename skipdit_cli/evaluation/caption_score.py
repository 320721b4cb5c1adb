"""The CLIP score of images and their captions, by a CLIP folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.evaluation.extraction import share_batches
from skipdit_cli.evaluation.image_set import ImageSet
from skipdit_cli.formats import parse_json, read_text
from skipdit_cli.processes import Team
from skipdit_cli.training.data.data_folder import Bounds
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.metadata import read_rows

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The normalisation of OpenAI's CLIP, where a folder names none."""
MOST_BYTES = 1 << 20


class CaptionScorer:
    """A CLIP model; ``scorer(images, captions)`` returns the CLIP score of each pair.

    Args:
        folder: A folder of transformers with a ``CLIPModel`` and its tokenizer; nothing is downloaded.

    Raises:
        UsageError: It is no such folder.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import AutoTokenizer, CLIPModel

        if not (folder / "config.json").is_file():
            raise UsageError(f"Got --clip {folder}, which is no folder of a CLIP model; nothing is downloaded.")
        with reading(f"Got --clip {folder}, which", failed="cannot be loaded as a CLIP model"):
            here: Any = {"local_files_only": True, "trust_remote_code": False}
            self.model: Any = CLIPModel.from_pretrained(folder, **here).eval().to(device)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **here)
        self.side, self.device = self.model.config.vision_config.image_size, device
        file = folder / "preprocessor_config.json"
        settings: Any = parse_json(read_text(file, MOST_BYTES), file) if file.is_file() else {}
        with reading(str(file), failed="has no image_mean and image_std of three numbers each"):
            mean, deviation = settings.get("image_mean", MEAN), settings.get("image_std", DEVIATION)
            self.mean, self.deviation = (torch.tensor(values).float().view(3, 1, 1) for values in (mean, deviation))
        with reading(f"Got --clip {folder}, which", failed="cannot score an image"):
            self(np.zeros((1, 8, 8, 3), np.uint8), ["a"])

    def __call__(self, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Return 100 times the cosine of each image and its caption, at least 0 (Hessel et al., arXiv 2104.08718).

        Args:
            images: uint8 (N, H, W, C), C of 1 or 3.
            captions: N texts; what exceeds the positions of the text encoder is cut off.
        """
        longest = self.model.config.text_config.max_position_embeddings
        words = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        pixels = torch.stack([self._prepare(image) for image in images]).to(self.device)
        with torch.inference_mode():
            output = self.model(
                input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels
            )
        texts, pictures = (
            torch.nn.functional.normalize(embeds.double(), dim=-1)
            for embeds in (output.text_embeds, output.image_embeds)
        )
        return (100 * (texts * pictures).sum(-1)).clamp(min=0).cpu().numpy()

    def _prepare(self, image: np.ndarray) -> torch.Tensor:
        """Return an image at the size of the model: its shorter side resized, the middle cut out, normalised."""
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
        scale = self.side / min(picture.size)
        width, height = (max(self.side, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        picture = picture.crop((left, top, left + self.side, top + self.side))
        pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255
        return (pixels - self.mean) / self.deviation


def read_captions(images: ImageSet, file: Path | None) -> list[str]:
    """Return the caption of each sample, from a metadata file or from the records of the samples.

    Args:
        file: A ``metadata.jsonl`` or ``.csv`` whose entries name the samples' files; None takes the prompts that the
            samples record.

    Raises:
        UsageError: A sample has no caption.
    """
    if file is None:
        prompts = images.prompts()
        if prompts is None:
            raise UsageError(
                f"Got --clip, but not all of {images.name} record a prompt; give --captions FILE, a metadata.jsonl "
                "that names them."
            )
        return prompts
    if not file.is_file():
        raise UsageError(f"Got --captions {file}, which is no file; expected a metadata.jsonl or metadata.csv.")
    rows = read_rows(file, Demand(captions=True), Bounds(file.parent, allow_outside=True))
    captions = {os.path.realpath(path): caption for path, caption in rows}
    missing = [path for path in images.files if os.path.realpath(path) not in captions]
    if missing or not images.files:
        raise UsageError(f"Got --captions {file} without an entry for {missing[0] if missing else images.name}.")
    return [str(captions[os.path.realpath(path)]) for path in images.files]


def mean_caption_score(
    scorer: CaptionScorer,
    images: ImageSet,
    captions: Sequence[str],
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
    team: Team = Team(),
) -> float:
    """Return the mean CLIP score of samples; that of a video is the mean over its frames.

    Args:
        advance: Called with the number of samples that are done.
        team: The processes that share the work; all but the main one return NaN.
    """
    scores: list[float] = []
    measure = partial(_scores, scorer=scorer, captions=captions)
    for batch, values in share_batches(images, images.batches(0, batch_size), measure, team):
        scores += values
        advance(batch.stop - batch.start)
    return float(np.mean(scores)) if scores else float("nan")


def _scores(pixels: np.ndarray, batch: slice, scorer: CaptionScorer, captions: Sequence[str]) -> list[float]:
    texts = captions[batch]
    if pixels.ndim == 5:
        return [float(scorer(video, [text] * len(video)).mean()) for video, text in zip(pixels, texts)]
    return [float(score) for score in scorer(pixels, texts)]
