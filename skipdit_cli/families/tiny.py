"""Tiny configurations, with inputs of a forward, of transformer classes that diffusers' own tests do not cover.

``record`` tries skip branches and cache on them.
"""

from __future__ import annotations

import torch

WIDTH = {"num_attention_heads": 2, "attention_head_dim": 8}


def noise(*shape):
    """Return standard normal noise."""
    return torch.randn(shape)


def positions(*counts):
    """Return the position indices of each axis."""
    return [torch.arange(count) for count in counts]


TIMESTEP = torch.tensor([500.0])
KANDINSKY = dict(out_visual_dim=4, time_dim=8, model_dim=32, ff_dim=32, num_visual_blocks=6, axes_dims=(4, 6, 6))
TEXTS = dict(in_text_dim=6, in_text_dim2=6, num_text_blocks=1, in_visual_dim=4)
FIBO = dict(
    injection_layer_ids=(2, 4), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2
)
CASES = {
    "StableAudioDiTModel": lambda: (
        dict(WIDTH, sample_size=8, in_channels=4, out_channels=4, num_layers=6, num_key_value_attention_heads=2,
             cross_attention_dim=6, time_proj_dim=8, global_states_input_dim=6, cross_attention_input_dim=6),
        dict(hidden_states=noise(1, 4, 8), timestep=TIMESTEP, encoder_hidden_states=noise(1, 5, 6),
             global_hidden_states=noise(1, 1, 6), rotary_embedding=(torch.ones(9, 4), torch.zeros(9, 4))),
    ),
    "Flux3Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, cond_in_channels=4, num_layers=2, num_single_layers=6, joint_attention_dim=6,
             timestep_channels=8, axes_dims_rope=(2, 2, 2, 2)),
        dict(hidden_states=noise(1, 16, 4), encoder_hidden_states=noise(1, 5, 6), timestep=TIMESTEP,
             img_ids=torch.zeros(16, 4), txt_ids=torch.zeros(5, 4)),
    ),
    "HunyuanImageTransformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=2, num_single_layers=4, num_refiner_layers=1,
             text_embed_dim=6, rope_axes_dim=(4, 4)),
        dict(hidden_states=noise(1, 4, 8, 8), timestep=TIMESTEP, encoder_hidden_states=noise(1, 5, 6),
             encoder_attention_mask=torch.ones(1, 5)),
    ),
    "Kandinsky5Transformer3DModel": lambda: (
        dict(KANDINSKY, **TEXTS),
        dict(hidden_states=noise(1, 2, 8, 8, 4), encoder_hidden_states=noise(1, 5, 6), timestep=TIMESTEP,
             pooled_projections=noise(1, 6), visual_rope_pos=positions(2, 4, 4), text_rope_pos=torch.arange(5)),
    ),
    "Kandinsky6Transformer3DModel": lambda: (
        dict(KANDINSKY, **TEXTS, visual_cond=False),
        dict(hidden_states=noise(1, 2, 8, 8, 4), encoder_hidden_states=noise(1, 5, 6), timestep=TIMESTEP,
             pooled_projections=noise(1, 6), visual_rope_pos=positions(2, 4, 4)),
    ),
    "Kandinsky6SRTransformer3DModel": lambda: (
        dict(KANDINSKY, in_visual_dim=4), dict(hidden_states=noise(1, 2, 8, 8, 9), timestep=TIMESTEP)
    ),
    "BriaFibo2Transformer2DModel": lambda: (
        dict(FIBO, gist_step=2, in_channels=4, dim=16, n_layers=6, n_refiner_layers=1, n_heads=2, cap_feat_dim=6,
             gist_min_text_len=4, gist_max_text_len=32, axes_dims=(4, 2, 2), axes_lens=(64, 32, 32)),
        dict(hidden_states=noise(1, 4, 8, 8), timestep=TIMESTEP / 1000, encoder_hidden_states=noise(1, 3, 6, 6)),
    ),
    "QwenImage21Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=6, context_in_dim=6, axes_dims_rope=(4, 2, 2)),
        dict(hidden_states=noise(1, 16, 4), encoder_hidden_states=noise(1, 5, 6), timestep=TIMESTEP,
             img_shapes=[[(1, 4, 4)]], img_mask=torch.tensor([[False] * 5 + [True] * 4])),
    ),
    "SanaWMTransformer3DModel": lambda: (
        dict(in_channels=4, num_layers=6, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
             t_kernel_size=3, caption_channels=6, mlp_ratio=2.0, chunk_plucker_channels=6,
             chunk_plucker_post_attn_blocks=6),
        dict(hidden_states=noise(1, 4, 4, 8, 8), timestep=TIMESTEP.expand(1, 1, 4), chunk_plucker=noise(1, 6, 4, 8, 8),
             encoder_hidden_states=noise(1, 1, 5, 6), encoder_attention_mask=torch.ones(1, 5),
             camera_conditions=torch.cat([torch.eye(4).flatten(), torch.tensor([8.0, 8, 4, 4])]).expand(1, 4, 20)),
    ),
    "SanaWMLTX2RefinerTransformer3DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=6, cross_attention_dim=16, caption_channels=6,
             audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
             audio_cross_attention_dim=8, rope_double_precision=False),
        dict(hidden_states=noise(1, 32, 4), timestep=TIMESTEP.expand(1, 32), encoder_hidden_states=noise(1, 5, 6),
             encoder_attention_mask=torch.ones(1, 5), video_rotary_emb=(torch.ones(1, 32, 16), noise(1, 32, 16))),
    ),
    "DreamLiteTransformer2DModel": lambda: (
        dict(WIDTH, in_channels=16, num_layers=6, norm_num_groups=4, cross_attention_dim=6),
        dict(hidden_states=noise(1, 16, 4, 4), encoder_hidden_states=noise(1, 5, 6)),
    ),
    "Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=16, num_layers=6, norm_num_groups=4, cross_attention_dim=6),
        dict(hidden_states=noise(1, 16, 4, 4), encoder_hidden_states=noise(1, 5, 6)),
    ),
    "PriorTransformer": lambda: (
        dict(WIDTH, num_layers=6, embedding_dim=8, num_embeddings=7, additional_embeddings=4),
        dict(hidden_states=noise(2, 8), timestep=2, proj_embedding=noise(2, 8), encoder_hidden_states=noise(2, 7, 8)),
    ),
    "T5FilmDecoder": lambda: (
        dict(input_dims=4, targets_length=8, d_model=16, num_layers=6, num_heads=2, d_kv=8, d_ff=16),
        dict(encodings_and_masks=[(noise(1, 5, 16), torch.ones(1, 5))], decoder_input_tokens=noise(1, 8, 4),
             decoder_noise_time=torch.tensor([0.5])),
    ),
    "MiniMaxMusic3RVQDepthDecoder": lambda: (
        dict(hidden_size=16, num_layers=6, num_attention_heads=2, intermediate_size=16, audio_vocab_size=8,
             num_codebooks=4),
        dict(inputs_embeds=noise(1, 4, 16)),
    ),
}  # fmt: skip
