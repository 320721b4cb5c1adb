"""A whole tiny text pipeline of each family that is trained, seeded, made without a download."""

import json
from pathlib import Path
from string import ascii_lowercase

import torch
from conftest import tiny_text_transformer, tiny_tokenizer, tiny_vae
from families import tiny


def clip_tokenizer():
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    return CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=77)


def clip(projected: bool, width: int = 8):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, bos_token_id=0, eos_token_id=1, initializer_factor=5.0,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(tokenizer, width: int, kind: str = "T5"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, initializer_factor=5.0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def bert(folder: Path, width: int):
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_lowercase, *(f"##{one}" for one in ascii_lowercase)]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    config = BertConfig(
        vocab_size=len(words), hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return BertTokenizer.from_pretrained(folder), BertModel(config).eval()


def latte(words: Path):
    from diffusers import DDIMScheduler, LattePipeline

    tokens = tiny_tokenizer(words)
    scheduler = DDIMScheduler(beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return LattePipeline(tokens, t5(tokens, 12), tiny_vae(), tiny_text_transformer(), scheduler)


def pixart(words: Path, **config):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

    tokens = tiny_tokenizer(words)
    own = {"in_channels": 4, "out_channels": 8, "norm_type": "ada_norm_single", "norm_elementwise_affine": False}
    transformer = tiny("PixArtTransformer2DModel", num_layers=4, **own, **config)
    scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return PixArtAlphaPipeline(tokens, t5(tokens, 6), tiny_vae(scaling_factor=0.7), transformer, scheduler)


def sd3(words: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokens = tiny_tokenizer(words)
    transformer = tiny(
        "SD3Transformer2DModel", num_layers=4, in_channels=4, out_channels=4, joint_attention_dim=18,
        pooled_projection_dim=16, dual_attention_layers=(),
    )  # fmt: skip
    vae = tiny_vae(scaling_factor=1.5, shift_factor=0.06)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    encoders = (clip(True), clip_tokenizer(), clip(True), clip_tokenizer(), t5(tokens, 18), tokens)
    return StableDiffusion3Pipeline(transformer, scheduler, vae, *encoders)


def flux(words: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    tokens = tiny_tokenizer(words)
    transformer = tiny("FluxTransformer2DModel", in_channels=16, pooled_projection_dim=8)
    vae = tiny_vae(scaling_factor=0.36, shift_factor=0.11)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae, clip(False), clip_tokenizer(), t5(tokens, 6), tokens, transformer)


def hunyuan(words: Path):
    from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiTPipeline

    tokens = tiny_tokenizer(words)
    bert_tokens, encoder = bert(words.parent / "bert", 8)
    transformer = tiny("HunyuanDiT2DModel", in_channels=4, text_len=77, text_len_t5=256, attention_head_dim=8)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(4,) * 4, norm_num_groups=2)  # the pipeline counts on 8 a side
    return HunyuanDiTPipeline(
        vae.eval(), encoder, bert_tokens, transformer, scheduler, None, None, False, t5(tokens, 8), tokens
    )


def wan(words: Path, **options):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    tokens = tiny_tokenizer(words)
    transformer = tiny("WanTransformer3DModel", num_layers=4, in_channels=16, out_channels=16)
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokens, t5(tokens, 6, "UMT5"), vae, scheduler, transformer, **options)


def pixart_1024(words: Path):
    """Told of the picture's size."""
    return pixart(words, sample_size=128, num_attention_heads=3, cross_attention_dim=24)


def wan_5b(words: Path):
    """Told a time for every token, as Wan 2.2's 5B is."""
    return wan(words, expand_timesteps=True)


MADE = {"latte": latte, "pixart": pixart, "sd3": sd3, "flux": flux, "hunyuan": hunyuan, "wan": wan}
VARIANTS = {"pixart-1024": pixart_1024, "wan-5b": wan_5b}


def text_pipeline(name: str, folder: Path):
    """The pipeline of a family, its tokenizers' files below ``folder``."""
    torch.manual_seed(0)
    pipe = {**MADE, **VARIANTS}[name](folder / "words")
    pipe.set_progress_bar_config(disable=True)
    return pipe
