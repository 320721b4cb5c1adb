"""The text pipelines that are trained: how each encodes a text, and how its transformer is told of it.

What is encoded and how, is diffusers' own ``encode_prompt``, called as the pipeline's ``__call__`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from skipdit_cli.sampling.device import transformers_of
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.data.demand import TRAINED
from skipdit_cli.training.data.store import Tensors


class Family:
    """The rule: texts all of one length, handed on by the names ``encode`` gives them.

    Args:
        pipe: The pipeline.
    """

    note: str | None = None
    """What to know about a model before it is trained."""

    def __init__(self, pipe):
        self.pipe, self.transformer = pipe, transformer_of(pipe)
        self.config = self.transformer.config

    def encode(self, text: str, device: torch.device) -> Tensors:
        """An encoded text, by argument of the transformer; each tensor with a batch of one."""
        raise NotImplementedError

    def gather(self, texts: Sequence[Tensors]) -> Tensors:
        """Encoded texts as one batch, in which each is seen as it is alone."""
        return {name: torch.cat([text[name] for text in texts]) for name in texts[0]}

    def predict(self, model, xt: torch.Tensor, times: torch.Tensor, texts: Tensors, **arguments) -> torch.Tensor:
        """The model's output for latents (B, C, [F,] h, w) at ``times`` (B,)."""
        return model(xt, timestep=times, return_dict=False, **texts, **arguments)[0]

    def pixels(self, xt: torch.Tensor) -> tuple[int, int]:
        """Height and width of the picture behind latents."""
        return tuple(side * self.pipe.vae_scale_factor for side in xt.shape[-2:])

    def longest(self) -> int | None:
        """Tokens of a text, as many as the pipeline takes when it is called; None where it does not say."""
        said = call_parameters(self.pipe).get("max_sequence_length")
        return None if said is None else said.default


class Latte(Family):
    """Its transformer masks nothing: the pipeline cuts a text to its own tokens."""

    def encode(self, text, device):
        embeds, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, device=device)
        return {"encoder_hidden_states": embeds}

    def gather(self, texts):
        """With a bias that hides what only fills up the shorter texts."""
        encoded = [text["encoder_hidden_states"][0] for text in texts]
        own = pad_sequence([torch.ones(len(tokens)) for tokens in encoded], batch_first=True)
        bias = ((1 - own) * -10000.0)[:, None]
        return {"encoder_hidden_states": pad_sequence(encoded, batch_first=True), "encoder_attention_mask": bias}

    def predict(self, model, xt, times, texts, **arguments):
        bias = texts["encoder_attention_mask"].repeat_interleave(xt.shape[2], dim=0)  # diffusers wants one a frame
        return super().predict(model, xt, times, {**texts, "encoder_attention_mask": bias}, **arguments)


class PixArt(Family):
    def encode(self, text, device):
        embeds, mask, *_ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, device=device, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def predict(self, model, xt, times, texts, **arguments):
        size = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            height, width = self.pixels(xt)
            sizes = torch.tensor([[height, width, height / width]], device=xt.device).repeat(len(xt), 1)
            size = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
        return super().predict(model, xt, times, texts, added_cond_kwargs=size, **arguments)


class StableDiffusion3(Family):
    def encode(self, text, device):
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            text, None, None, device, do_classifier_free_guidance=False, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


class Flux(Family):
    """Its transformer sees latents packed two by two, and a distilled one its guidance: the pipeline's default."""

    def encode(self, text, device):
        embeds, pooled, _ = self.pipe.encode_prompt(text, None, device, max_sequence_length=self.longest())
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    @property
    def guidance(self) -> float | None:
        """What a model distilled with guidance is told; None for one that is not."""
        return call_parameters(self.pipe)["guidance_scale"].default if self.config.guidance_embeds else None

    @property
    def note(self) -> str | None:
        scale = self.guidance
        return (
            None if scale is None else f"The model was distilled with guidance: it is trained at a scale of {scale}."
        )

    def predict(self, model, xt, times, texts, **arguments):
        height, width = xt.shape[-2:]
        guidance = None if self.guidance is None else torch.full((len(xt),), self.guidance, device=xt.device)
        tokens = self.pipe._pack_latents(xt, *xt.shape)
        places = self.pipe._prepare_latent_image_ids(len(xt), height // 2, width // 2, xt.device, xt.dtype)
        text_places = torch.zeros(texts["encoder_hidden_states"].shape[1], 3, device=xt.device, dtype=xt.dtype)
        told = {**texts, "img_ids": places, "txt_ids": text_places, "guidance": guidance}
        output = super().predict(model, tokens, times / 1000, told, **arguments)
        return self.pipe._unpack_latents(output, height, width, 1)


class Hunyuan(Family):
    """Two encoders, each with its mask; sizes and style are those of the pipeline's call."""

    def encode(self, text, device):
        encoded = {}
        for index, (suffix, longest) in enumerate((("", 77), ("_t5", 256))):
            embeds, _, mask, _ = self.pipe.encode_prompt(
                text,
                device=device,
                do_classifier_free_guidance=False,
                max_sequence_length=longest,
                text_encoder_index=index,
            )
            encoded |= {f"encoder_hidden_states{suffix}": embeds, f"text_embedding_mask{suffix}": mask}
        return encoded

    def predict(self, model, xt, times, texts, **arguments):
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        transformer, (height, width) = self.transformer, self.pixels(xt)
        grid = tuple(side // self.config.patch_size for side in xt.shape[-2:])
        region = get_resize_crop_region_for_grid(grid, 512 // 8 // self.config.patch_size)
        rotary = get_2d_rotary_pos_embed(
            transformer.inner_dim // transformer.num_heads, region, grid, device=xt.device, output_type="pt"
        )
        sizes = (*call_parameters(self.pipe)["original_size"].default, height, width, 0, 0)
        told = {
            **texts,
            "image_meta_size": torch.tensor([sizes], device=xt.device, dtype=xt.dtype).repeat(len(xt), 1),
            "style": torch.zeros(len(xt), dtype=torch.long, device=xt.device),
            "image_rotary_emb": rotary,
        }
        return super().predict(model, xt, times.to(xt.dtype), told, **arguments)


class Wan(Family):
    """Texts filled up with zeros, which its transformer does attend to: in training as in sampling."""

    def encode(self, text, device):
        embeds, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, device=device, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds}

    def predict(self, model, xt, times, texts, **arguments):
        if self.pipe.config.expand_timesteps:  # Wan 2.2's 5B: a time for every token
            tokens = xt[0, 0].numel() // math.prod(patch_of(self.pipe))
            times = times[:, None].expand(-1, tokens)
        return super().predict(model, xt, times, texts, **arguments)


FAMILIES: dict[str, type[Family]] = {
    "LatteTransformer3DModel": Latte,
    "PixArtTransformer2DModel": PixArt,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
    "HunyuanDiT2DModel": Hunyuan,
    "WanTransformer3DModel": Wan,
}


def transformer_of(pipe):
    """The pipeline's transformer; of two, which are of one shape, the first that is loaded."""
    return next(iter(transformers_of(pipe).values()))


def as_trained(pipe):
    """The pipeline of texts, on the same parts, of one that makes images of images, say, with the same transformer."""
    import diffusers

    name = TRAINED[type(transformer_of(pipe)).__name__].siblings.get(type(pipe).__name__)
    return pipe if name is None else getattr(diffusers, name).from_pipe(pipe, dtype=transformer_of(pipe).dtype)


def family_of(pipe) -> Family | None:
    """What is to know about a text pipeline; None for one of classes or of nothing."""
    kind = FAMILIES.get(type(transformer_of(pipe)).__name__)
    return None if kind is None else kind(pipe)


def patch_of(pipe) -> tuple[int, int]:
    """Height and width of a token, in latents."""
    if isinstance(family_of(pipe), Flux):
        return 2, 2
    patch = transformer_of(pipe).config.patch_size
    return (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
