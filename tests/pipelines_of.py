"""Whole tiny pipelines of diffusers, one a family, with tokenizers and random weights made without a download."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from families import tiny
from string import ascii_lowercase

TEXT = 6  # width of an encoded text
WORDS = ("a", "cat", "dog", "red", "runs")


def _saved(tokenizer, folder: Path, **config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def word_tokenizer(kind: str, **config):
    """A fast tokenizer of a few words and all letters, of a class of transformers."""
    import transformers
    from tempfile import mkdtemp
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    scores = [*((name, 0.0) for name in special), ("▁", -2.0), *((letter, -3.0) for letter in ascii_lowercase)]
    tokenizer = Tokenizer(Unigram([*scores, *((f"▁{word}", -1.0) for word in WORDS)], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    own = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 16, **config}
    folder = _saved(tokenizer, Path(mkdtemp()), tokenizer_class=kind, **own)
    return getattr(transformers, kind).from_pretrained(folder)


def t5(width: int = TEXT):
    """A tokenizer and an encoder."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer("T5TokenizerFast", extra_ids=0)
    sizes = dict(d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, initializer_factor=5.0)
    return tokenizer, T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()


def umt5(width: int = TEXT):
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = word_tokenizer("T5TokenizerFast", extra_ids=0)
    sizes = dict(d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, initializer_factor=5.0)
    return tokenizer, UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes)).eval()


def clip(width: int = TEXT, projected: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = word_tokenizer("PreTrainedTokenizerFast", bos_token="<s>")
    sizes = dict(hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=16, projection_dim=width, eos_token_id=1, **sizes
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return tokenizer, kind(config).eval()


def vae(channels: int, side: int = 2, **config):
    """Of pictures, ``side`` times as fine."""
    from diffusers import AutoencoderKL

    stages = {1: 1, 2: 2}[side]
    own = {"block_out_channels": (8,) * stages, "norm_num_groups": 2, "latent_channels": channels}
    down, up = ("DownEncoderBlock2D",) * stages, ("UpDecoderBlock2D",) * stages
    return AutoencoderKL(down_block_types=down, up_block_types=up, **{**own, **config}).eval()


def flow(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)
