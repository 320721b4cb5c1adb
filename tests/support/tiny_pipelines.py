"""Tiny diffusers pipelines, one for each family, with random weights made without a download."""

from pathlib import Path

import torch

from tests.support.pipeline_parts import (
    CHAT,
    TEXT,
    bert,
    clip,
    decoder_only,
    flow,
    gemma3,
    mistral3,
    t5,
    vae,
    wan_vae,
    word_tokenizer,
)
from tests.support.tiny_transformers import tiny, tiny_text_transformer


def pixart(sigma: bool = True):
    import diffusers

    tokenizer, encoder = t5()
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    transformer = tiny("PixArtTransformer2DModel", caption_channels=TEXT)
    return kind(tokenizer, encoder, vae(2), transformer, diffusers.DPMSolverMultistepScheduler())


def hunyuan_dit():
    from diffusers import DDPMScheduler, HunyuanDiTPipeline

    (tokenizer, encoder), (tokenizer_2, encoder_2) = bert(), t5()
    transformer = tiny("HunyuanDiT2DModel", text_len=77, text_len_t5=256)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    parts = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return HunyuanDiTPipeline(
        vae(2), encoder, tokenizer, transformer, scheduler, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, **parts
    )


def sd3(img2img: bool = False, **config):
    """Return Stable Diffusion 3.5 medium, with two attentions in some blocks, or what ``config`` makes of it."""
    import diffusers

    (one, first), (two, second), (three, third) = clip(projected=True), clip(projected=True), t5(2 * TEXT)
    sizes = dict(joint_attention_dim=2 * TEXT, pooled_projection_dim=2 * TEXT)
    kind = diffusers.StableDiffusion3Img2ImgPipeline if img2img else diffusers.StableDiffusion3Pipeline
    transformer = tiny("SD3Transformer2DModel", **sizes, **config)
    return kind(transformer, flow(), vae(2, shift_factor=0.1), first, one, second, two, third, three)


def flux():
    from diffusers import FluxPipeline

    (one, first), (two, second) = clip(), t5()
    transformer = tiny("FluxTransformer2DModel", in_channels=8, joint_attention_dim=TEXT, pooled_projection_dim=TEXT)
    return FluxPipeline(flow(), vae(2, shift_factor=0.1), first, one, second, two, transformer)


def flux2(klein: bool = False):
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Pipeline

    if klein:
        tokenizer, encoder = decoder_only("Qwen3", head="ForCausalLM")
        tokenizer.chat_template = CHAT
    else:
        tokenizer, encoder = mistral3()
    kinds = dict(down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
    sizes = dict(block_out_channels=(8,), norm_num_groups=2, latent_channels=2)
    decoder = AutoencoderKLFlux2(**kinds, **sizes).eval()
    sizes = dict(in_channels=8, joint_attention_dim=2 * TEXT, guidance_embeds=not klein)
    transformer = tiny("Flux2Transformer2DModel", **sizes)
    kind = Flux2KleinPipeline if klein else Flux2Pipeline
    return kind(flow(use_dynamic_shifting=True), decoder, encoder, tokenizer, transformer)


def chroma():
    from diffusers import ChromaPipeline

    tokenizer, encoder = t5()
    transformer = tiny("ChromaTransformer2DModel", in_channels=8, joint_attention_dim=TEXT)
    return ChromaPipeline(flow(), vae(2, shift_factor=0.1), encoder, tokenizer, transformer)


def aura_flow():
    from diffusers import AuraFlowPipeline

    tokenizer, encoder = t5(kind="UMT5")
    transformer = tiny("AuraFlowTransformer2DModel", joint_attention_dim=TEXT, pos_embed_max_size=64)
    return AuraFlowPipeline(tokenizer, encoder, vae(2), transformer, flow())


def lumina2():
    from diffusers import Lumina2Pipeline

    tokenizer, encoder = decoder_only("Gemma2")
    transformer = tiny("Lumina2Transformer2DModel", cap_feat_dim=TEXT, axes_lens=(300, 32, 32))
    return Lumina2Pipeline(transformer, flow(), vae(2, shift_factor=0.1), encoder, tokenizer)


def sana():
    from diffusers import AutoencoderDC, SanaPipeline

    tokenizer, encoder = decoder_only("Gemma2")
    blocks = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), attention_head_dim=4)
    layers = dict(encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1))
    layers |= dict(encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()))
    decoder = AutoencoderDC(latent_channels=2, **blocks, **layers).eval()
    return SanaPipeline(tokenizer, encoder, decoder, tiny("SanaTransformer2DModel", caption_channels=TEXT), flow())


def cogview4():
    from diffusers import CogView4Pipeline

    tokenizer, encoder = decoder_only("Glm")
    transformer = tiny("CogView4Transformer2DModel", text_embed_dim=TEXT)
    scheduler = flow(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True)
    return CogView4Pipeline(tokenizer, encoder, vae(2), transformer, scheduler)


def latte():
    """Return Latte, whose VAE decodes single images; the number of frames is fixed by training."""
    from diffusers import DDIMScheduler, LattePipeline

    scheduler = DDIMScheduler(beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return LattePipeline(*t5(12), vae(4, 2), tiny_text_transformer(num_layers=6), scheduler)


def cogvideox():
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline

    tokenizer, encoder = t5()
    kinds = dict(down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2)
    sizes = dict(block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1, temporal_compression_ratio=2)
    decoder = AutoencoderKLCogVideoX(latent_channels=2, sample_height=16, sample_width=16, **kinds, **sizes).eval()
    transformer = tiny(
        "CogVideoXTransformer3DModel", text_embed_dim=TEXT, max_text_seq_length=16, sample_frames=5,
        temporal_compression_ratio=2, use_rotary_positional_embeddings=True, attention_head_dim=16,
    )  # fmt: skip
    return CogVideoXPipeline(tokenizer, encoder, decoder, transformer, CogVideoXDDIMScheduler())


def wan(two: bool = False, image: bool = False):
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

    tokenizer, encoder = t5(kind="UMT5")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    config = dict(text_dim=TEXT, in_channels=6 if image else 2)
    parts = dict(tokenizer=tokenizer, text_encoder=encoder, vae=wan_vae(), scheduler=scheduler)
    parts["transformer"] = tiny("WanTransformer3DModel", **config)
    if two:
        parts |= dict(transformer_2=tiny("WanTransformer3DModel", seed=1, **config), boundary_ratio=0.8)
    if image:
        return WanImageToVideoPipeline(image_processor=None, image_encoder=None, **parts)
    return WanPipeline(**parts)


def ltx():
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline

    tokenizer, encoder = t5()
    kinds = dict(down_block_types=("LTXVideoDownBlock3D",), block_out_channels=(8,), layers_per_block=(1, 1))
    scaling = dict(spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,))
    up = dict(decoder_block_out_channels=(8,), decoder_layers_per_block=(1, 1), decoder_inject_noise=(False, False))
    more = dict(upsample_residual=(False,), upsample_factor=(1,), latent_channels=4, patch_size=1)
    decoder = AutoencoderKLLTXVideo(**kinds, **scaling, **up, **more).eval()
    transformer = tiny("LTXVideoTransformer3DModel", caption_channels=TEXT)
    return LTXPipeline(flow(use_dynamic_shifting=True), decoder, encoder, tokenizer, transformer)


def ltx2():
    """Return LTX-2, which makes videos with sound."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    tokenizer, encoder = gemma3()
    scaling = dict(spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,))
    up = dict(decoder_block_out_channels=(8,), decoder_layers_per_block=(1, 1), decoder_inject_noise=(False, False))
    more = dict(downsample_type=("spatial",), upsample_residual=(False,), upsample_factor=(1,), patch_size=1)
    sizes = dict(latent_channels=4, block_out_channels=(8,), layers_per_block=(1,))
    decoder = AutoencoderKLLTX2Video(**sizes, **scaling, **up, **more).eval()
    sizes = dict(base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8)
    audio = AutoencoderKLLTX2Audio(**sizes).eval()
    rate = dict(upsample_kernel_sizes=[16, 20], upsample_factors=[8, 20], output_sampling_rate=16000)
    layers = dict(hidden_channels=16, resnet_kernel_sizes=[3], resnet_dilations=[[1]])
    vocoder = LTX2Vocoder(in_channels=16, out_channels=2, **layers, **rate).eval()
    streams = {}
    for stream in ("video", "audio"):
        sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1, num_learnable_registers=None)
        streams |= {f"{stream}_connector_{name}": value for name, value in sizes.items()}
    connectors = LTX2TextConnectors(caption_channels=TEXT, text_proj_in_factor=2, **streams).eval()
    transformer = tiny("LTX2VideoTransformer3DModel", caption_channels=TEXT, perturbed_attn=True)
    return LTX2Pipeline(flow(), decoder, audio, encoder, tokenizer, connectors, transformer, vocoder)


def hunyuan_video():
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline

    (tokenizer, encoder), (tokenizer_2, encoder_2) = decoder_only("Llama", num_hidden_layers=4), clip()
    kinds = dict(down_block_types=("HunyuanVideoDownBlock3D",) * 4, up_block_types=("HunyuanVideoUpBlock3D",) * 4)
    sizes = dict(block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False)
    decoder = AutoencoderKLHunyuanVideo(
        latent_channels=2, spatial_compression_ratio=8, temporal_compression_ratio=4, **kinds, **sizes
    ).eval()
    transformer = tiny("HunyuanVideoTransformer3DModel", text_embed_dim=TEXT, pooled_projection_dim=TEXT)
    return HunyuanVideoPipeline(encoder, tokenizer, transformer, decoder, flow(), encoder_2, tokenizer_2)


def allegro():
    """Return Allegro, whose VAE decodes tiles of 24 frames and over 120 pixels, and gives black for less."""
    from diffusers import AllegroPipeline, AutoencoderKLAllegro, EulerAncestralDiscreteScheduler

    tokenizer, encoder = t5()
    sizes = dict(block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, sample_size=128)
    decoder = AutoencoderKLAllegro(latent_channels=2, **sizes).eval()
    transformer = tiny(
        "AllegroTransformer3DModel", caption_channels=TEXT, attention_head_dim=12, cross_attention_dim=24
    )
    return AllegroPipeline(tokenizer, encoder, decoder, transformer, EulerAncestralDiscreteScheduler())


def mochi():
    from diffusers import AutoencoderKLMochi, MochiPipeline

    tokenizer, encoder = t5(16)
    sizes = dict(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5)
    spread = dict(latents_mean=[0.1] * 12, latents_std=[1.5] * 12)
    decoder = AutoencoderKLMochi(latent_channels=12, **sizes, **spread).eval()
    transformer = tiny("MochiTransformer3DModel", max_sequence_length=16, in_channels=12)
    return MochiPipeline(flow(), decoder, encoder, tokenizer, transformer, force_zeros_for_empty_prompt=True)


def qwen_image():
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = word_tokenizer("PreTrainedTokenizerFast")
    text = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, vocab_size=len(tokenizer),
                rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6})  # fmt: skip
    vision = dict(
        depth=1, hidden_size=8, intermediate_size=8, num_heads=2, out_hidden_size=16, fullatt_block_indexes=[]
    )
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    spread = dict(latents_mean=[0.1] * 2, latents_std=[1.5] * 2)
    decoder = AutoencoderKLQwenImage(
        base_dim=4, z_dim=2, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], **spread
    ).eval()
    transformer = tiny("QwenImageTransformer2DModel", joint_attention_dim=16)
    return QwenImagePipeline(flow(), decoder, encoder, tokenizer, transformer)


def z_image():
    from diffusers import ZImagePipeline

    tokenizer, encoder = decoder_only("Qwen3")
    tokenizer.chat_template = CHAT
    transformer = tiny("ZImageTransformer2DModel", cap_feat_dim=TEXT)
    return ZImagePipeline(flow(), vae(2, shift_factor=0.1), encoder, tokenizer, transformer)


IMAGE = ("--height", 16, "--width", 16)
VIDEO = (*IMAGE, "--num-frames", 5)
SHORT = ("--pipeline-arg", "max_sequence_length=16")
FREE = ("--pipeline-arg", "use_resolution_binning=false")
LAYERS = ("--pipeline-arg", "text_encoder_out_layers=[0, 2]")
TEMPLATE = ("--pipeline-arg", "prompt_template={template: '{}', crop_start: 0}")
PERTURBED = ("--pipeline-arg", "spatio_temporal_guidance_blocks=[2]")
PIPELINES = {
    "pixart-alpha": (lambda: pixart(sigma=False), (*IMAGE, *SHORT, *FREE)),
    "pixart-sigma": (pixart, (*IMAGE, *SHORT, *FREE)),
    "hunyuan-dit": (hunyuan_dit, (*IMAGE, *FREE)),
    "sd3": (lambda: sd3(dual_attention_layers=(), qk_norm=None), (*IMAGE, *SHORT)),
    "sd3.5": (sd3, (*IMAGE, *SHORT)),
    "flux": (flux, (*IMAGE, *SHORT)),
    "flux-2": (flux2, (*IMAGE, *SHORT, *LAYERS)),
    "flux-2-klein": (lambda: flux2(klein=True), (*IMAGE, *SHORT, *LAYERS)),
    "chroma": (chroma, (*IMAGE, *SHORT)),
    "aura-flow": (aura_flow, (*IMAGE, *SHORT)),
    "lumina-2": (lumina2, ("--height", 64, "--width", 64, *SHORT)),
    "sana": (sana, ("--height", 32, "--width", 32, *SHORT, *FREE)),
    "cogview-4": (cogview4, (*IMAGE, *SHORT)),
    "latte": (latte, (*IMAGE, "--num-frames", 4)),
    "cogvideox": (cogvideox, (*VIDEO, *SHORT)),
    "wan-2.1": (wan, (*VIDEO, *SHORT)),
    "wan-2.2": (lambda: wan(two=True), (*VIDEO, *SHORT)),
    "hunyuan-video": (hunyuan_video, (*VIDEO, *TEMPLATE, *SHORT)),
    "allegro": (allegro, ("--height", 128, "--width", 128, "--num-frames", 24, *SHORT)),
    "mochi": (mochi, (*VIDEO, *SHORT)),
    "qwen-image": (qwen_image, (*IMAGE, *SHORT)),
    "z-image": (z_image, (*IMAGE, *SHORT)),
    "ltx": (ltx, ("--height", 32, "--width", 32, "--num-frames", 5, *SHORT)),
    "ltx-2": (ltx2, ("--height", 32, "--width", 32, "--num-frames", 5, *SHORT, *PERTURBED)),
}
"""For each family: the function that returns its pipeline, and flags of ``skipdit sample`` that keep outputs small."""


def build(name: str):
    """Return the pipeline of a family in ``PIPELINES``, in eval mode, the same each time."""
    torch.manual_seed(0)
    return PIPELINES[name][0]()


def settings_of(name: str) -> dict:
    """Return the flags of a family in ``PIPELINES`` as keyword arguments of ``generate``."""
    import yaml

    flags = PIPELINES[name][1]
    pairs = list(zip(flags[::2], flags[1::2]))
    arguments = dict(value.split("=") for flag, value in pairs if flag == "--pipeline-arg")
    settings = {flag[2:].replace("-", "_"): value for flag, value in pairs if flag != "--pipeline-arg"}
    return {**settings, "arguments": {name: yaml.safe_load(value) for name, value in arguments.items()}}


def write_pipeline(folder: Path, transformer) -> Path:
    """Save a pixel-space pipeline of a transformer and a DDIM scheduler, without a VAE, and return its folder."""
    from diffusers import DDIMScheduler

    from skipdit_cli.models import save_pipeline
    from skipdit_cli.models.build import pipeline_around

    save_pipeline(pipeline_around(transformer, DDIMScheduler(clip_sample=False)), folder)
    return folder
