"""Tiny transformers: six blocks about 16 wide of each family that skipdit declares, and a text-to-video Latte."""

import torch

WIDTH = dict(num_attention_heads=2, attention_head_dim=8)
CONFIGS = {
    "HunyuanDiT2DModel": dict(WIDTH, num_layers=6, hidden_size=16, in_channels=2, patch_size=2,
        sample_size=8, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8, text_len=3,
        text_len_t5=3, activation_fn="gelu-approximate",
    ),
    "PixArtTransformer2DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=4, cross_attention_dim=16,
        sample_size=8, caption_channels=6,
    ),
    "SD3Transformer2DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, sample_size=8,
        joint_attention_dim=6, caption_projection_dim=16, pooled_projection_dim=6, pos_embed_max_size=12,
        dual_attention_layers=(1, 4), qk_norm="rms_norm",
    ),
    "FluxTransformer2DModel": dict(WIDTH, num_layers=2, num_single_layers=4, in_channels=4,
        joint_attention_dim=6, pooled_projection_dim=6, guidance_embeds=True, axes_dims_rope=(4, 2, 2),
    ),
    "Flux2Transformer2DModel": dict(WIDTH, num_layers=2, num_single_layers=4, in_channels=4,
        joint_attention_dim=6, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2),
    ),
    "ChromaTransformer2DModel": dict(WIDTH, num_layers=3, num_single_layers=3, in_channels=4,
        joint_attention_dim=6, axes_dims_rope=(4, 2, 2), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    ),
    "AuraFlowTransformer2DModel": dict(WIDTH, num_mmdit_layers=2, num_single_dit_layers=4, in_channels=2,
        out_channels=2, sample_size=8, joint_attention_dim=6, caption_projection_dim=16, pos_embed_max_size=16,
    ),
    "Lumina2Transformer2DModel": dict(num_layers=6, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
        hidden_size=16, in_channels=2, sample_size=8, multiple_of=4, cap_feat_dim=6, axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
    ),
    "SanaTransformer2DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, sample_size=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=6,
    ),
    "QwenImageTransformer2DModel": dict(WIDTH, num_layers=6, in_channels=8, out_channels=2, joint_attention_dim=6,
        axes_dims_rope=(4, 2, 2),
    ),
    "ZImageTransformer2DModel": dict(n_layers=6, n_refiner_layers=1, n_heads=2, n_kv_heads=2, dim=16,
        in_channels=2, cap_feat_dim=6, axes_dims=(4, 2, 2), axes_lens=(512, 32, 32),
    ),
    "CogVideoXTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, time_embed_dim=4,
        text_embed_dim=6, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=5,
    ),
    "CogView4Transformer2DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, time_embed_dim=8,
        text_embed_dim=6, condition_dim=4, rope_axes_dim=(8, 8), sample_size=8,
    ),
    "WanTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, text_dim=6, freq_dim=8,
        ffn_dim=16, rope_max_seq_len=64,
    ),
    "LTXVideoTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=4, out_channels=4, cross_attention_dim=16,
        caption_channels=6,
    ),
    "LTX2VideoTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=4, out_channels=4, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
        audio_cross_attention_dim=8, caption_channels=6, rope_double_precision=False,
    ),
    "HunyuanVideoTransformer3DModel": dict(WIDTH, num_layers=2, num_single_layers=4, num_refiner_layers=1,
        in_channels=2, out_channels=2, text_embed_dim=6, pooled_projection_dim=6, rope_axes_dim=(4, 2, 2),
    ),
    "MochiTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=2, pooled_projection_dim=8,
        text_embed_dim=16, time_embed_dim=4, max_sequence_length=16,
    ),
    "AllegroTransformer3DModel": dict(WIDTH, num_layers=6, in_channels=2, out_channels=2, cross_attention_dim=16,
        sample_width=8, sample_height=8, sample_frames=4, caption_channels=6,
    ),
}  # fmt: skip


@torch.no_grad()
def perturbed(model, scale: float = 0.05):
    """Add noise to every weight of a model, so that none stays at zero, and return the model."""
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return model


def tiny(name: str, seed: int = 0, **config):
    """Return a seeded model of a diffusers class in ``CONFIGS``, in eval mode, with no weight at zero."""
    import diffusers

    torch.manual_seed(seed)
    return perturbed(getattr(diffusers, name)(**{**CONFIGS[name], **config}).eval())


def arguments(model, seed: int = 0) -> dict:
    """Return the arguments of one forward: seeded noise and text embeddings."""
    from skipdit_cli.families.example import example_inputs

    return example_inputs(model, small=True, generator=torch.Generator().manual_seed(seed))


def run(model, arguments: dict) -> torch.Tensor:
    """Return the first output of one forward; a list of images or videos becomes one flat tensor."""
    copies = {name: list(x) if isinstance(x, list) else x for name, x in arguments.items()}
    with torch.no_grad():
        output = model(**copies, return_dict=False)[0]
    return torch.cat([each.flatten() for each in output]) if isinstance(output, list) else output


def tiny_text_transformer(seed: int = 0, num_layers: int = 4, **config):
    """Return a seeded text-to-video Latte, 16 wide, with no weight at zero.

    Its latents are (4, frames 4, 8, 8), its text embeddings 12 wide.
    """
    from diffusers import LatteTransformer3DModel

    torch.manual_seed(seed)
    defaults = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 16,
        "sample_size": 8,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 12,
        "attention_bias": True,
        "video_length": 4,
    }
    return perturbed(LatteTransformer3DModel(num_layers=num_layers, **{**defaults, **config}).eval(), 0.1)
