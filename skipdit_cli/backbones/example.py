"""What a model is called with: the arguments of one forward, made from its signature and its configuration."""

from __future__ import annotations

import inspect
import math

import torch

from skipdit_cli.errors import UsageError, reading

NATIVE = {  # latent frames, height, width of the pipeline's default, where the configuration does not say
    "WanTransformer3DModel": (21, 60, 104),
    "HunyuanVideoTransformer3DModel": (33, 90, 160),
    "MochiTransformer3DModel": (4, 60, 106),
    "LTXVideoTransformer3DModel": (21, 16, 22),
    "LTX2VideoTransformer3DModel": (16, 16, 24),
}
FRAMES_FIRST = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
TEXT_TOKENS = {"LatteTransformer3DModel": 120, "PixArtTransformer2DModel": 120, "SD3Transformer2DModel": 333}
TEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "text_embed_dim",
    "text_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)
SMALL = 16  # patches a side, at most


def example_inputs(
    transformer,
    batch: int = 1,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    generator: torch.Generator | None = None,
) -> dict:
    """Arguments of one forward, at the size that the model's configuration or its pipeline has, or a small one.

    Args:
        small: At most 16 patches a side, and two of the frames, where the model does not fix their number.
        generator: Draw inputs and texts from it, at timestep 500, instead of all zero.
    Returns:
        Names and values: of DiT, say, ``hidden_states`` (batch, C, H, W), ``timestep`` and ``class_labels`` (batch,).
    Raises:
        UsageError: The class takes an argument that is not known here.
    """
    made = _Example(transformer, batch, device, dtype, small, generator)
    inputs = {}
    for name, parameter in inspect.signature(type(transformer).forward).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        maker = getattr(made, f"_{name}", None)
        if name == "self" or (maker is None and not needed):
            continue
        with reading(f"The config of this {type(transformer).__name__}", failed=f"gives no example of {name}"):
            value = None if maker is None else maker()
        if value is None and needed:
            raise UsageError(
                f"Got {type(transformer).__name__}, whose forward takes {name}: no example of it can be made; "
                "call add_skip_branches with example_inputs in Python, then save_pretrained."
            )
        if value is not None:
            inputs[name] = value
    return inputs


class _Example:
    """One method an argument; None where the model does not take it."""

    def __init__(self, transformer, batch, device, dtype, small, generator):
        self.config, self.transformer, self.name = transformer.config, transformer, type(transformer).__name__
        self.batch, self.device, self.dtype, self.small, self.generator = batch, device, dtype, small, generator
        self.parameters = inspect.signature(type(transformer).forward).parameters
        patch = self._get("patch_size") or 1
        patch = patch if isinstance(patch, (tuple, list)) else (self._get("patch_size_t") or 1, patch, patch)
        self.packed = "img_ids" in self.parameters or "img_shapes" in self.parameters
        patch = (1, 2, 2) if self.packed or self.name == "ZImageTransformer2DModel" else patch
        self.size = self._sized(patch, small)
        self.grid = tuple(-(-side // step) for side, step in zip(self.size, patch))

    def _get(self, *names):
        return next((self.config[name] for name in names if self.config.get(name) is not None), None)

    def _sized(self, patch: tuple, small: bool) -> tuple[int, int, int]:
        frames, height, width = NATIVE.get(self.name, (21, 60, 104) if "3D" in self.name else (1, 128, 128))
        side = self._get("sample_size")
        side = (side, side) if isinstance(side, int) else side
        height, width = self._get("sample_height") or height, self._get("sample_width") or width
        if side is not None:
            height, width = side
        if self.name in FRAMES_FIRST:
            frames = (self.config.sample_frames - 1) // self.config.temporal_compression_ratio + 1
        else:
            frames = self._get("video_length", "sample_frames") or frames
        if self._get("axes_lens"):  # as many positions as it has
            height, width = (min(side, most * step) for side, most, step in
                             zip((height, width), self.config.axes_lens[1:], patch[1:]))  # fmt: skip
        if small and not self._get("use_learned_positional_embeddings"):
            height, width = min(height, SMALL * patch[1]), min(width, SMALL * patch[2])
            frames = frames if "video_length" in self.config else min(frames, 2 * patch[0])
        return tuple(-(-side // step) * step for side, step in zip((frames, height, width), patch))

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, device=self.device, dtype=dtype or self.dtype)

    def _ones(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.ones(shape, device=self.device, dtype=dtype or self.dtype)

    def _noise(self, *shape: int) -> torch.Tensor:
        if self.generator is None:
            return self._zeros(*shape)
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    @property
    def _tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def _text(self) -> int:
        fixed = self._get("max_text_seq_length", "text_len")
        most = (self._get("axes_lens") or (512,))[0] // 2  # the image's positions follow on the text's
        return fixed or min(most, SMALL if self.small else TEXT_TOKENS.get(self.name, 256))

    def _time(self) -> torch.Tensor:
        whole = "num_embeds_ada_norm" in self.config
        time = self._zeros(self.batch, dtype=torch.long if whole else None)
        return time if self.generator is None else time + 500

    # What is denoised

    def _hidden_states(self) -> torch.Tensor | None:
        channels, (frames, height, width) = self._get("in_channels"), self.size
        if channels is None:
            return None
        if self.packed or "num_frames" in self.parameters:
            return self._noise(self.batch, self._tokens, channels)
        if self.name in FRAMES_FIRST:
            return self._noise(self.batch, frames, channels, height, width)
        if "3D" in self.name:
            return self._noise(self.batch, channels, frames, height, width)
        return self._noise(self.batch, channels, height, width) if "2D" in self.name else None

    def _x(self) -> list[torch.Tensor]:
        return [self._noise(self.config.in_channels, *self.size) for _ in range(self.batch)]

    def _audio_hidden_states(self) -> torch.Tensor:
        return self._noise(self.batch, self._audio_num_frames(), self.config.audio_in_channels)

    def _audio_num_frames(self) -> int:
        return 4 * self.size[0]

    # When

    def _timestep(self) -> torch.Tensor:
        return self._time()

    def _t(self) -> torch.Tensor:
        return self._time() / 1000

    def _guidance(self) -> torch.Tensor | None:
        return self._ones(self.batch) if self._get("guidance_embeds") else None

    # What it is to show

    def _class_labels(self) -> torch.Tensor | None:
        return None if self._get("num_embeds_ada_norm") is None else self._zeros(self.batch, dtype=torch.long)

    def _encoder_hidden_states(self) -> torch.Tensor | None:
        width = self._get("cross_attention_dim") if self.name == "HunyuanDiT2DModel" else self._get(*TEXT_WIDTHS)
        return None if width is None else self._noise(self.batch, self._text, width)

    def _audio_encoder_hidden_states(self) -> torch.Tensor:
        return self._noise(self.batch, self._text, self._get("caption_channels", "audio_cross_attention_dim"))

    def _cap_feats(self) -> list[torch.Tensor]:
        return [self._noise(self._text, self.config.cap_feat_dim) for _ in range(self.batch)]

    def _encoder_attention_mask(self) -> torch.Tensor | None:
        needed = self.parameters["encoder_attention_mask"].default is inspect.Parameter.empty
        return self._ones(self.batch, self._text, dtype=torch.bool) if needed else None

    def _encoder_hidden_states_mask(self) -> torch.Tensor:
        return self._ones(self.batch, self._text, dtype=torch.long)

    def _pooled_projections(self) -> torch.Tensor | None:
        width = self._get("pooled_projection_dim")
        return None if width is None else self._noise(self.batch, width)

    def _encoder_hidden_states_image(self) -> torch.Tensor | None:
        width = self._get("image_dim")
        return None if width is None else self._noise(self.batch, 257, width)

    def _encoder_hidden_states_t5(self) -> torch.Tensor | None:
        width = self._get("cross_attention_dim_t5")
        return None if width is None else self._noise(self.batch, self.config.text_len_t5, width)

    def _text_embedding_mask(self) -> torch.Tensor:
        return self._ones(self.batch, self._text)

    def _text_embedding_mask_t5(self) -> torch.Tensor | None:
        tokens = self._get("text_len_t5")
        return None if tokens is None else self._ones(self.batch, tokens)

    def _style(self) -> torch.Tensor:
        return self._zeros(self.batch, dtype=torch.long)

    # How large, and where

    def _image_meta_size(self) -> torch.Tensor:
        return self._ones(self.batch, 6)

    def _original_size(self) -> torch.Tensor:
        return self._ones(self.batch, 2)

    _target_size = _original_size

    def _crop_coords(self) -> torch.Tensor:
        return self._zeros(self.batch, 2)

    def _added_cond_kwargs(self) -> dict:
        sized = getattr(self.transformer, "use_additional_conditions", False)
        kinds = {"resolution": 2, "aspect_ratio": 1}
        return {name: self._ones(self.batch, count) if sized else None for name, count in kinds.items()}

    def _img_ids(self) -> torch.Tensor:
        return self._ids(self._tokens)

    def _txt_ids(self) -> torch.Tensor:
        return self._ids(self._text)

    def _ids(self, tokens: int) -> torch.Tensor:
        axes = len(self.config.axes_dims_rope)
        return self._zeros(*([self.batch] if self.name == "Flux2Transformer2DModel" else []), tokens, axes)

    def _img_shapes(self) -> list:
        return [[self.grid]] * self.batch

    def _image_rotary_emb(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.name != "HunyuanDiT2DModel":
            return None
        shape = self._tokens, self.config.attention_head_dim
        return self._ones(*shape), self._zeros(*shape)

    def _num_frames(self) -> int:
        return self.grid[0]

    def _height(self) -> int:
        return self.grid[1]

    def _width(self) -> int:
        return self.grid[2]
