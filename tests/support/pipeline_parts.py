"""Parts of tiny pipelines: tokenizers, text encoders, VAEs and a scheduler, made without a download."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory

import torch

TEXT = 8  # width of the text embeddings
WORDS = ("a", "cat", "dog", "red", "runs")
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def word_tokenizer(kind: str, **config):
    """Return a fast tokenizer of a few words and all letters; ``kind`` names its class in transformers."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    scores = [*((name, 0.0) for name in special), ("▁", -2.0), *((letter, -3.0) for letter in ascii_lowercase)]
    tokenizer = Tokenizer(Unigram([*scores, *((f"▁{word}", -1.0) for word in WORDS)], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 16, **config}
    with TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **tokens}))
        return getattr(transformers, kind).from_pretrained(folder)


def t5(width: int = TEXT, kind: str = "T5", **sizes):
    """Return a tokenizer and a T5 text encoder, or one of another ``kind`` such as UMT5."""
    import transformers

    tokenizer = word_tokenizer("T5TokenizerFast", extra_ids=0)
    defaults = dict(d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, initializer_factor=5.0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **defaults, **sizes)
    return tokenizer, getattr(transformers, f"{kind}EncoderModel")(config).eval()


def clip(width: int = TEXT, projected: bool = False):
    """Return a tokenizer and a CLIP text encoder, with its projection if ``projected``."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = word_tokenizer("PreTrainedTokenizerFast", bos_token="<s>")
    sizes = dict(hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    ends = dict(bos_token_id=3, eos_token_id=1, pad_token_id=0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=77, projection_dim=width, **sizes, **ends
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return tokenizer, kind(config).eval()


def bert(width: int = TEXT):
    """Return a tokenizer and a BERT text encoder."""
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer("PreTrainedTokenizerFast")
    sizes = dict(hidden_size=width, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return tokenizer, BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()


def decoder_only(kind: str, width: int = TEXT, head: str = "Model", **sizes):
    """Return a tokenizer and a decoder-only language model (Gemma2, Llama, ...), without a head by default."""
    import transformers

    tokenizer = word_tokenizer("PreTrainedTokenizerFast", padding_side="right")
    defaults = dict(hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, head_dim=4)
    defaults |= dict(num_key_value_heads=1, max_position_embeddings=600, pad_token_id=0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **{**defaults, **sizes})
    return tokenizer, getattr(transformers, f"{kind}{head}")(config).eval()


def mistral3():
    """Return a tokenizer and a Mistral 3 model.

    The tokenizer replaces the processor, which needs torchvision, since the prompts are text alone. Its chat template
    puts the last message, the prompt, first, so that truncation cuts the long system message.
    """
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = word_tokenizer("PreTrainedTokenizerFast", padding_side="right")
    tokenizer.chat_template = "{% for message in messages | reverse %}{{ message.content[0].text }} {% endfor %}"
    sizes = dict(hidden_size=TEXT, intermediate_size=8, num_attention_heads=2, head_dim=4)
    text = dict(sizes, model_type="mistral", num_hidden_layers=2, num_key_value_heads=1, vocab_size=len(tokenizer))
    vision = dict(sizes, model_type="pixtral", num_hidden_layers=1, image_size=4, patch_size=2)
    config = Mistral3Config(text_config={**text, "pad_token_id": 0}, vision_config=vision)
    return tokenizer, Mistral3ForConditionalGeneration(config).eval()


def gemma3():
    """Return a tokenizer and a Gemma 3 model, whose vision tower is one layer that nothing calls."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = word_tokenizer("PreTrainedTokenizerFast", padding_side="left")
    sizes = dict(hidden_size=TEXT, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text = dict(sizes, num_key_value_heads=1, head_dim=4, vocab_size=len(tokenizer), pad_token_id=0)
    vision = dict(sizes, image_size=4, patch_size=2)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    return tokenizer, Gemma3ForConditionalGeneration(config).eval()


def vae(channels: int, stages: int = 1, **config):
    """Return an image VAE with a spatial compression ratio of 2 ** (stages - 1)."""
    from diffusers import AutoencoderKL

    defaults = {"block_out_channels": (8,) * stages, "norm_num_groups": 2, "latent_channels": channels}
    down, up = ("DownEncoderBlock2D",) * stages, ("UpDecoderBlock2D",) * stages
    return AutoencoderKL(down_block_types=down, up_block_types=up, **defaults, **config).eval()


def wan_vae(channels: int = 2):
    """Return Wan's video VAE, with a compression ratio of 2 in space and in time."""
    from diffusers import AutoencoderKLWan

    spread = dict(latents_mean=[0.1] * channels, latents_std=[1.5] * channels)
    sizes = dict(base_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True])
    return AutoencoderKLWan(z_dim=channels, scale_factor_temporal=2, scale_factor_spatial=2, **spread, **sizes).eval()


def flow(**config):
    """Return the scheduler of flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def tiny_tokenizer(folder: Path):
    """Return a T5 tokenizer of a few words and all letters, saved in a new folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import T5TokenizerFast

    words = [f"▁{word}" for word in WORDS]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0, **dict.fromkeys(ascii_lowercase, -3.0)}
    tokenizer = Tokenizer(Unigram([*scores.items(), *((word, -1.0) for word in words)], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return T5TokenizerFast.from_pretrained(folder)


def tiny_vae(temporal: bool = False, seed: int = 0, **config):
    """Return a seeded VAE of 4 latent channels with a spatial compression ratio of 2, of images or of videos."""
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    torch.manual_seed(seed)
    defaults = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2}
    if temporal:
        return AutoencoderKLTemporalDecoder(**defaults, **config).eval()
    return AutoencoderKL(**defaults, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, **config).eval()
