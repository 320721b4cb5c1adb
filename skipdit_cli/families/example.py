"""Example arguments of one forward, made from the signature and the config of a transformer class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.families.registry import family_of

SMALL = 16
"""Most patches a side of a small example."""
IMAGE_GRID, VIDEO_GRID = (1, 128, 128), (21, 60, 104)
"""Latent frames, height and width where neither the config nor the family says them."""


def example_inputs(
    transformer,
    batch: int = 1,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    generator: torch.Generator | None = None,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
) -> dict:
    """Return arguments of one forward, at the size that the model's config or its pipeline has, or a small one.

    Args:
        transformer: The model.
        batch: Number of samples.
        device, dtype: Of the tensors.
        small: At most 16 patches a side and 2 frames, where the model does not fix their number.
        generator: Draws latents and encoded text, at timestep 500; None makes all of them zero.
        size: Latent frames, height and width in the place of the model's own; None for each that stays.
    Returns:
        Values by argument name: of DiT ``hidden_states`` (batch, C, H, W), ``timestep`` and ``class_labels`` (batch,).
    Raises:
        UsageError: The forward has a required argument of which no example is known.
    """
    transformer = unwrap_compiled(transformer)
    example = Example(transformer, batch, device, dtype, small, generator, size)
    inputs = {}
    for name, parameter in inspect.signature(type(transformer).forward).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        make = example.function_for(name)
        if name == "self" or (make is None and not needed):
            continue
        with reading(f"The config of this {type(transformer).__name__}", failed=f"gives no example of {name}"):
            value = None if make is None else make()
        if value is None and needed:
            raise UsageError(
                f"Got {type(transformer).__name__}, whose forward takes {name}: no example of it can be made; "
                "call add_skip_branches with example_inputs in Python, then save_pretrained."
            )
        if value is not None:
            inputs[name] = value
    return inputs


class Example:
    """The sizes of an example forward, and one method for each argument that returns None if the model takes none.

    Args:
        transformer, batch, device, dtype, small, generator, size: As for ``example_inputs``.
    """

    def __init__(self, transformer, batch, device, dtype, small, generator, size=(None, None, None)):
        self.config, self.transformer, self.name = transformer.config, transformer, type(transformer).__name__
        self.batch, self.device, self.dtype, self.small, self.generator = batch, device, dtype, small, generator
        self.parameters = inspect.signature(type(transformer).forward).parameters
        self.family_sizes = family_of(transformer).example
        self.packed = "img_ids" in self.parameters or "img_shapes" in self.parameters
        patch = self._patch()
        self.size = self._size(patch, size)
        self.grid = tuple(-(-side // step) for side, step in zip(self.size, patch))

    def function_for(self, name: str) -> Callable | None:
        """Return the function that makes an argument, or None if its name is unknown."""
        if name in self.family_sizes.arguments:
            return partial(self.family_sizes.arguments[name], self)
        return getattr(self, f"_make_{name}", None)

    @property
    def tokens(self) -> int:
        """The number of image or video tokens."""
        return math.prod(self.grid)

    @property
    def text_tokens(self) -> int:
        """The number of text tokens."""
        fixed = self._get("max_text_seq_length", "text_len")
        most = (self._get("axes_lens") or (512,))[0] // 2  # the positions of the image follow those of the text
        return fixed or min(most, SMALL if self.small else self.family_sizes.text_tokens)

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return zeros on the example's device, in its dtype by default."""
        return torch.zeros(shape, device=self.device, dtype=dtype or self.dtype)

    def ones(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return ones on the example's device, in its dtype by default."""
        return torch.ones(shape, device=self.device, dtype=dtype or self.dtype)

    def noise(self, *shape: int) -> torch.Tensor:
        """Return standard normal noise, or zeros without a generator."""
        if self.generator is None:
            return self.zeros(*shape)
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def _get(self, *names):
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)

    def _patch(self) -> tuple[int, int, int]:
        """Latent frames, height and width of a token."""
        if self.family_sizes.patch or self.packed:
            return self.family_sizes.patch or (1, 2, 2)
        patch = self._get("patch_size") or 1
        return tuple(patch) if isinstance(patch, (tuple, list)) else (self._get("patch_size_t") or 1, patch, patch)

    def _size(self, patch: tuple[int, int, int], chosen: tuple[int | None, ...]) -> tuple[int, int, int]:
        """Latent frames, height and width, each a multiple of the patch's; those of ``chosen`` where they are set."""
        frames, height, width = self.family_sizes.grid or (VIDEO_GRID if "3D" in self.name else IMAGE_GRID)
        side = self._get("sample_size")
        side = (side, side) if isinstance(side, int) else side
        height, width = self._get("sample_height") or height, self._get("sample_width") or width
        if side is not None:
            height, width = side
        if self.family_sizes.frames_first:
            frames = (self.config.sample_frames - 1) // self.config.temporal_compression_ratio + 1
        else:
            frames = self._get("video_length", "sample_frames") or frames
        if self._get("axes_lens"):  # no more positions than the model has
            height, width = (min(side, most * step) for side, most, step in
                             zip((height, width), self.config.axes_lens[1:], patch[1:]))  # fmt: skip
        if self.small and not self._get("use_learned_positional_embeddings"):
            height, width = min(height, SMALL * patch[1]), min(width, SMALL * patch[2])
            frames = frames if "video_length" in self.config else min(frames, 2 * patch[0])
        frames, height, width = (new or own for new, own in zip(chosen, (frames, height, width)))
        frames, height, width = (-(-side // step) * step for side, step in zip((frames, height, width), patch))
        return frames, height, width

    def _time(self) -> torch.Tensor:
        is_integer = "num_embeds_ada_norm" in self.config
        time = self.zeros(self.batch, dtype=torch.long if is_integer else None)
        return time if self.generator is None else time + 500

    # Noisy latents

    def _make_hidden_states(self) -> torch.Tensor | None:
        channels, (frames, height, width) = self._get("in_channels"), self.size
        if channels is None:
            return None
        if self.packed or "num_frames" in self.parameters:
            return self.noise(self.batch, self.tokens, channels)
        if self.family_sizes.frames_first:
            return self.noise(self.batch, frames, channels, height, width)
        if "3D" in self.name:
            return self.noise(self.batch, channels, frames, height, width)
        return self.noise(self.batch, channels, height, width) if "2D" in self.name else None

    def _make_x(self) -> list[torch.Tensor]:
        return [self.noise(self.config.in_channels, *self.size) for _ in range(self.batch)]

    def _make_audio_hidden_states(self) -> torch.Tensor:
        return self.noise(self.batch, self._make_audio_num_frames(), self.config.audio_in_channels)

    def _make_audio_num_frames(self) -> int:
        return 4 * self.size[0]

    # Timestep

    def _make_timestep(self) -> torch.Tensor:
        return self._time()

    def _make_t(self) -> torch.Tensor:
        return self._time() / 1000

    def _make_guidance(self) -> torch.Tensor | None:
        return self.ones(self.batch) if self._get("guidance_embeds") else None

    # Conditions

    def _make_class_labels(self) -> torch.Tensor | None:
        return None if self._get("num_embeds_ada_norm") is None else self.zeros(self.batch, dtype=torch.long)

    def _make_encoder_hidden_states(self) -> torch.Tensor | None:
        width = self._get(*self.family_sizes.text_width)
        return None if width is None else self.noise(self.batch, self.text_tokens, width)

    def _make_audio_encoder_hidden_states(self) -> torch.Tensor:
        return self.noise(self.batch, self.text_tokens, self._get("caption_channels", "audio_cross_attention_dim"))

    def _make_cap_feats(self) -> list[torch.Tensor]:
        return [self.noise(self.text_tokens, self.config.cap_feat_dim) for _ in range(self.batch)]

    def _make_encoder_attention_mask(self) -> torch.Tensor | None:
        needed = self.parameters["encoder_attention_mask"].default is inspect.Parameter.empty
        return self.ones(self.batch, self.text_tokens, dtype=torch.bool) if needed else None

    def _make_encoder_hidden_states_mask(self) -> torch.Tensor:
        return self.ones(self.batch, self.text_tokens, dtype=torch.long)

    def _make_pooled_projections(self) -> torch.Tensor | None:
        width = self._get("pooled_projection_dim")
        return None if width is None else self.noise(self.batch, width)

    def _make_encoder_hidden_states_image(self) -> torch.Tensor | None:
        width = self._get("image_dim")
        return None if width is None else self.noise(self.batch, 257, width)

    def _make_encoder_hidden_states_t5(self) -> torch.Tensor | None:
        width = self._get("cross_attention_dim_t5")
        return None if width is None else self.noise(self.batch, self.config.text_len_t5, width)

    def _make_text_embedding_mask(self) -> torch.Tensor:
        return self.ones(self.batch, self.text_tokens)

    def _make_text_embedding_mask_t5(self) -> torch.Tensor | None:
        tokens = self._get("text_len_t5")
        return None if tokens is None else self.ones(self.batch, tokens)

    def _make_style(self) -> torch.Tensor:
        return self.zeros(self.batch, dtype=torch.long)

    # Sizes and positions

    def _make_image_meta_size(self) -> torch.Tensor:
        return self.ones(self.batch, 6)

    def _make_original_size(self) -> torch.Tensor:
        return self.ones(self.batch, 2)

    _make_target_size = _make_original_size

    def _make_crop_coords(self) -> torch.Tensor:
        return self.zeros(self.batch, 2)

    def _make_added_cond_kwargs(self) -> dict:
        sized = getattr(self.transformer, "use_additional_conditions", False)
        kinds = {"resolution": 2, "aspect_ratio": 1}
        return {name: self.ones(self.batch, count) if sized else None for name, count in kinds.items()}

    def _make_img_ids(self) -> torch.Tensor:
        return self._ids(self.tokens)

    def _make_txt_ids(self) -> torch.Tensor:
        return self._ids(self.text_tokens)

    def _ids(self, tokens: int) -> torch.Tensor:
        axes = len(self.config.axes_dims_rope)
        return self.zeros(*([self.batch] if self.family_sizes.batched_ids else []), tokens, axes)

    def _make_img_shapes(self) -> list:
        return [[self.grid]] * self.batch

    def _make_num_frames(self) -> int:
        return self.grid[0]

    def _make_height(self) -> int:
        return self.grid[1]

    def _make_width(self) -> int:
        return self.grid[2]
