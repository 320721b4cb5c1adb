"""Tiny text-conditional pipelines to train, each with a latent scaling and a noise schedule of its own."""

import torch

from tests.support.pipeline_parts import TEXT, bert, clip, flow, t5, vae
from tests.support.tiny_pipelines import latte
from tests.support.tiny_transformers import tiny


def pixart(kind: str = "Alpha", **config):
    import diffusers

    transformer = tiny("PixArtTransformer2DModel", num_layers=4, caption_channels=TEXT, **config)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return getattr(diffusers, f"PixArt{kind}Pipeline")(*t5(), vae(2, 2, scaling_factor=0.7), transformer, scheduler)


def pixart_1024():
    """Return PixArt-alpha at 1024 pixels, whose transformer is conditioned on the image's size."""
    return pixart(sample_size=128, num_attention_heads=3, cross_attention_dim=24)


def pixart_sigma(**config):
    """Return PixArt-sigma at 1024 pixels, whose transformer is not conditioned on the image's size."""
    return pixart("Sigma", sample_size=128, use_additional_conditions=False, **config)


def pixart_sigma_of_noise():
    """Return PixArt-sigma without a learned variance."""
    return pixart_sigma(out_channels=2)


def sd3(**config):
    from diffusers import StableDiffusion3Pipeline

    (one, first), (two, second), (three, third) = clip(projected=True), clip(projected=True), t5(2 * TEXT)
    sizes = {"joint_attention_dim": 2 * TEXT, "pooled_projection_dim": 2 * TEXT}
    transformer = tiny("SD3Transformer2DModel", num_layers=4, **{"dual_attention_layers": (), **sizes, **config})
    decoder = vae(2, 2, scaling_factor=1.5, shift_factor=0.06)
    return StableDiffusion3Pipeline(transformer, flow(shift=3.0), decoder, first, one, second, two, third, three)


def sd3_5():
    """Return Stable Diffusion 3.5, with two attentions in some blocks."""
    return sd3(dual_attention_layers=(0, 2))


def flux():
    from diffusers import FluxPipeline

    (one, first), (two, second) = clip(), t5()
    transformer = tiny("FluxTransformer2DModel", in_channels=8, joint_attention_dim=TEXT, pooled_projection_dim=TEXT)
    decoder = vae(2, 2, scaling_factor=0.36, shift_factor=0.11)
    return FluxPipeline(flow(use_dynamic_shifting=True), decoder, first, one, second, two, transformer)


def hunyuan():
    from diffusers import DDPMScheduler, HunyuanDiTPipeline

    (one, first), (two, second) = bert(), t5()
    transformer = tiny("HunyuanDiT2DModel", text_len=77, text_len_t5=256)
    betas = {"beta_start": 0.00085, "beta_end": 0.03, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(prediction_type="v_prediction", **betas)
    decoder = vae(2, 4)  # the pipeline requires a compression ratio of 8
    return HunyuanDiTPipeline(decoder, first, one, transformer, scheduler, None, None, False, second, two)


def wan(**options):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    (tokenizer, encoder), transformer = t5(kind="UMT5"), tiny("WanTransformer3DModel", num_layers=4, text_dim=TEXT)
    spread = {"latents_mean": [0.3, -0.2], "latents_std": [1.5, 0.7]}
    decoder = AutoencoderKLWan(base_dim=3, z_dim=2, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **spread).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(tokenizer, encoder, decoder, scheduler, transformer, **options)


def wan_5b():
    """Return Wan 2.2 5B, whose transformer takes one timestep per token."""
    return wan(expand_timesteps=True)


def wan_22():
    """Return Wan 2.2 14B, which has two transformers."""
    second = tiny("WanTransformer3DModel", seed=1, num_layers=4, text_dim=TEXT)
    return wan(transformer_2=second, boundary_ratio=0.7)


BASES = {"latte": latte, "pixart": pixart, "sd3": sd3, "flux": flux, "hunyuan": hunyuan, "wan": wan}
VARIANTS = {
    "pixart-1024": pixart_1024,
    "pixart-sigma": pixart_sigma,
    "pixart-sigma-of-noise": pixart_sigma_of_noise,
    "sd3-5": sd3_5,
    "wan-5b": wan_5b,
    "wan-22": wan_22,
}
"""Variants of ``BASES``; the name of each begins with its base."""


def text_pipeline(name: str):
    """Return a pipeline in ``BASES`` or ``VARIANTS``, the same each time."""
    torch.manual_seed(0)
    pipe = {**BASES, **VARIANTS}[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
