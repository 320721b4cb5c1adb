"""Latents as the VAE has them and as transformers see them: one pair of functions, every VAE of diffusers."""

import inspect
from types import SimpleNamespace

import diffusers
import diffusers.models.autoencoders as autoencoders
import pytest
import torch
from packaging.version import Version

from skipdit_cli.errors import UsageError
from skipdit_cli.models.vae import check_vae
from skipdit_cli.sampling.latents import CONVENTIONS, check_scaling, latent_channels, scale, unscale
from skipdit_cli.sampling.latents import spatial_compression as shrinks
from skipdit_cli.sampling.pixels import to_pixels
from skipdit_cli.training.data.latent_dataset import moments
from skipdit_cli.training.fingerprints import fingerprint
from tests.support.pipeline_parts import tiny_vae

SPREAD, CENTRE = 1.7, 0.3
EVERY = sorted(
    name for name, kind in vars(autoencoders).items() if inspect.isclass(kind) and issubclass(kind, torch.nn.Module)
)
UNKNOWN = {
    "AutoencoderKLKVAE", "AutoencoderKLKVAEAudio", "AutoencoderKLKVAEVideo", "AutoencoderVidTok", "MMAudioVocoder",
    "MiniMaxMusic3Vocoder", "RFD4ProteinaAutoencoder",
}  # fmt: skip
"""Of which no pipeline of diffusers says how they are scaled, or which have no latents."""
NOT_IN_0_41 = {
    "AutoencoderKLKVAEAudio", "Kandinsky6SRVAE", "MMAudioVAE", "MMAudioVocoder", "RFD4ProteinaAutoencoder"
}  # fmt: skip
"""Of diffusers 0.42; 0.41 is the last for Python 3.10."""


def stand_in(name: str, channels: int = 4, **given):
    """A VAE of a class, with its own defaults in its config and statistics that are seen; without its layers."""
    kind = getattr(autoencoders, name)
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    config = diffusers.configuration_utils.FrozenDict({**defaults, **given})
    vae = type(name, (), {"config": config, "encoder": torch.nn.Identity()})()
    vae.latents_mean, vae.latents_std = torch.full((channels,), CENTRE), torch.full((channels,), SPREAD)
    vae.bn = SimpleNamespace(running_mean=torch.arange(4.0 * channels), running_var=torch.full((4 * channels,), 2.0))
    return vae


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def statistics(count: int) -> dict:
    return {"latents_mean": [CENTRE + i for i in range(count)], "latents_std": [SPREAD + i for i in range(count)]}


def by_channel(values: list[float], dimensions: int) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, *[1] * (dimensions - 2))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_scaled_is_unscaled(name):
    given = (
        statistics(4) if "latents_mean" in inspect.signature(getattr(autoencoders, name).__init__).parameters else {}
    )
    vae = stand_in(name, **given, **({"scaling_factor": 0.7} if name == "AutoencoderKLHunyuanImage" else {}))
    if name in UNKNOWN:
        with pytest.raises(UsageError, match=f"{name}.*not known how"):
            check_scaling(vae)
        return
    check_scaling(vae)
    for shape in ((2, 4, 6, 8), (2, 4, 3, 6, 8)):
        z = noise(*shape)
        seen = scale(vae, z)
        assert seen.shape == z.shape and seen.dtype == z.dtype
        torch.testing.assert_close(unscale(vae, seen), z, rtol=1e-4, atol=1e-4)


def test_every_vae_of_diffusers_is_known_or_refused():
    lacking = NOT_IN_0_41 if Version(diffusers.__version__) < Version("0.42") else set()
    assert set(EVERY) | lacking == set(CONVENTIONS) | UNKNOWN


def _plain(vae, z):  # SD, DiT, PixArt, Sana, CogVideoX, HunyuanVideo, ...
    return z * vae.config.scaling_factor


def _shifted(vae, z):  # pipeline_stable_diffusion_3_img2img.py, pipeline_flux_img2img.py
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def _normal(vae, z):  # pipeline_wan_video2video.py, pipeline_qwenimage_img2img.py: times one over the deviation
    mean, std = (by_channel(vae.config[key], z.ndim) for key in ("latents_mean", "latents_std"))
    return (z - mean) * (1.0 / std)


def _both(vae, z):  # pipeline_stable_diffusion_xl_img2img.py, and pipeline_mochi.py the other way
    mean, std = (by_channel(vae.config[key], z.ndim) for key in ("latents_mean", "latents_std"))
    return (z - mean) * vae.config.scaling_factor / std


def _own(kind: type, z, vae):  # pipeline_ltx_image2video.py
    return kind._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)


def _patched(vae, z):  # pipeline_flux2.py
    pipe = diffusers.Flux2Pipeline
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return pipe._unpatchify_latents((pipe._patchify_latents(z) - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation)


def _packed(vae, z):  # pipeline_ltx2.py, of sound
    pipe = diffusers.LTX2Pipeline
    packed = pipe._normalize_audio_latents(pipe._pack_audio_latents(z), vae.latents_mean, vae.latents_std)
    return packed.unflatten(2, (z.shape[1], z.shape[3])).transpose(1, 2)


@pytest.mark.parametrize(
    ("name", "given", "shape", "expected"),
    [
        ("AutoencoderKL", {}, (1, 4, 2, 2), _plain),
        ("AutoencoderKL", {"scaling_factor": 1.5305, "shift_factor": 0.0609}, (1, 16, 2, 2), _shifted),
        ("AutoencoderKL", {"scaling_factor": 0.5, **statistics(4)}, (1, 4, 2, 2), _both),
        ("AutoencoderTiny", {"scaling_factor": 1.5, "shift_factor": 0.25}, (1, 4, 2, 2), _shifted),
        ("AutoencoderDC", {"scaling_factor": 0.41407}, (1, 32, 2, 2), _plain),
        ("AutoencoderKLCogVideoX", {"invert_scale_latents": True}, (1, 16, 2, 2, 2), _plain),
        ("AutoencoderKLHunyuanVideo", {}, (1, 16, 2, 2, 2), _plain),
        ("AutoencoderKLTemporalDecoder", {}, (1, 4, 2, 2, 2), _plain),
        ("AutoencoderKLWan", {}, (1, 16, 2, 2, 2), _normal),
        ("AutoencoderKLQwenImage", {}, (1, 16, 1, 2, 2), _normal),
        ("AutoencoderKLQwenImage21", {}, (1, 64, 1, 2, 2), _normal),
        ("AutoencoderKLMiniMaxH3", statistics(24), (1, 24, 2, 2, 2), _normal),
        ("AutoencoderKLMochi", {"scaling_factor": 0.9}, (1, 12, 2, 2, 2), _both),
        ("AutoencoderKLMochi", {"latents_mean": None, "latents_std": None}, (1, 12, 2, 2, 2), _plain),
        ("AutoencoderKLCosmos", {"latents_mean": None, "latents_std": None}, (1, 16, 2, 2, 2), lambda vae, z: z),
        ("AutoencoderKLFlux2", {}, (1, 4, 4, 6), _patched),
        ("AutoencoderRAE", {"scaling_factor": 2.0}, (1, 4, 2, 2), lambda vae, z: z),
        ("AutoencoderOobleck", {}, (1, 4, 6), lambda vae, z: z),
    ],
)  # fmt: skip
def test_scaling_is_that_of_the_pipelines(name, given, shape, expected):
    vae, z = stand_in(name, **given), noise(*shape)
    torch.testing.assert_close(scale(vae, z), expected(vae, z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(unscale(vae, scale(vae, z)), z, rtol=1e-4, atol=1e-4)


def test_statistics_in_buffers_and_of_bands_and_of_frames():
    for name, kind in (
        ("AutoencoderKLLTXVideo", "LTXImageToVideoPipeline"),
        ("AutoencoderKLLTX2Video", "LTX2Pipeline"),
    ):
        vae, z = stand_in(name, scaling_factor=0.8), noise(1, 4, 2, 2, 2)
        torch.testing.assert_close(scale(vae, z), _own(getattr(diffusers, kind), z, vae))
    sound, z = stand_in("AutoencoderKLLTX2Audio", channels=8), noise(1, 4, 5, 2)
    sound.latents_mean, sound.latents_std = torch.arange(8.0), torch.arange(8.0) + 1
    torch.testing.assert_close(scale(sound, z), _packed(sound, z))
    cosmos, z = stand_in("AutoencoderKLCosmos"), noise(1, 16, 3, 2, 2)  # 16 frames' worth of 16 channels
    mean, std = (
        torch.tensor(cosmos.config[key]).view(1, 16, -1, 1, 1)[:, :, :3] for key in ("latents_mean", "latents_std")
    )  # pipeline_cosmos_video2world.py
    torch.testing.assert_close(scale(cosmos, z), (z - mean) / std)
    torch.testing.assert_close(unscale(cosmos, scale(cosmos, z)), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("AutoencoderKLHunyuanImage", {}, "scaling_factor None"),
        ("AutoencoderKL", {"scaling_factor": 0}, "scaling_factor 0"),
        ("AutoencoderKL", {"scaling_factor": float("nan")}, "scaling_factor nan"),
        ("AutoencoderKL", {"latents_mean": [0.0] * 4}, "no latents_std"),
        ("AutoencoderKL", {**statistics(4), "shift_factor": 0.1}, "latents_mean and shift_factor"),
        ("AutoencoderKLWan", {"latents_mean": None, "latents_std": None}, "no latents_mean"),
        ("AutoencoderKLWan", {"latents_mean": [0.0] * 16, "latents_std": [0.0] * 16}, "no spread"),
    ],
)
def test_what_cannot_be_known_is_refused(name, given, says):
    with pytest.raises(UsageError, match=says):
        check_scaling(stand_in(name, **given))


def test_statistics_of_another_number_of_channels_are_refused():
    for vae in (stand_in("AutoencoderKLWan"), stand_in("AutoencoderKLFlux2", channels=16)):
        with pytest.raises(UsageError, match="channels|values to scale by"):
            scale(vae, noise(1, 5, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_keep_their_dtype(dtype):
    assert scale(stand_in("AutoencoderKLWan"), noise(1, 16, 1, 2, 2).to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", EVERY)
def test_the_channels_of_every_vae_are_read(name):
    kind = getattr(autoencoders, name)
    config = {key: parameter.default for key, parameter in inspect.signature(kind.__init__).parameters.items()}
    if config.get("latent_channels") is inspect.Parameter.empty:
        config["latent_channels"] = 16
    expected = {
        "AutoencoderKLWan": 16, "AutoencoderKLQwenImage": 16, "AutoencoderKLQwenImage21": 64, "AutoencoderOobleck": 64,
        "AutoencoderRAE": 768, "AutoencoderKLKVAE": 16, "AutoencoderKLMochi": 12, "Cosmos3AVAEAudioTokenizer": 64,
        "AutoencoderKLMiniMaxH3Audio": 32, "MMAudioVocoder": None,
    }  # fmt: skip
    found = latent_channels(config)
    assert found == expected[name] if name in expected else isinstance(found, int)


def test_a_vae_of_wan_fits_by_its_channels():
    check_vae(stand_in("AutoencoderKLWan"), 16)
    with pytest.raises(UsageError, match="16 latent channels, but the model has 4"):
        check_vae(stand_in("AutoencoderKLWan"), 4, "wan")
    without = [stand_in("AutoencoderKL", latent_channels=None)]
    without += [stand_in(name) for name in EVERY if name == "MMAudioVocoder"]
    for vae in without:
        with pytest.raises(UsageError, match="does not say how many"):
            check_vae(vae, 4)


def test_how_far_a_vae_shrinks_pictures():
    assert shrinks(stand_in("AutoencoderKLWan")) == 8 and shrinks(stand_in("AutoencoderKLQwenImage21")) == 16
    assert shrinks(stand_in("AutoencoderTiny")) == 8 and shrinks(tiny_vae()) == 2
    with pytest.raises(UsageError, match="does not say"):
        shrinks(stand_in("AutoencoderOobleck"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (2, 4, 3, 4, 4)])
def test_what_is_decoded_is_what_was_encoded(config, shape, monkeypatch):
    vae, decoded = tiny_vae(**config), []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **told: (decoded.append(z), decode(z, **told))[1])
    z = noise(*shape)
    to_pixels(SimpleNamespace(vae=vae, _execution_device=torch.device("cpu")), scale(vae, z), 1)
    frames = z if z.ndim == 4 else z.transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(torch.cat(decoded), frames, rtol=1e-5, atol=1e-6)


def test_a_vae_that_draws_nothing_is_encoded_with():
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).eval()  # fmt: skip
    pixels = noise(2, 3, 8, 8).clamp(-1, 1)
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(moments(tiny, pixels))
    torch.testing.assert_close(posterior.sample(), tiny.encode(pixels).latents, rtol=1e-4, atol=1e-5)


def test_kept_latents_are_of_one_scaling():
    """What is kept is not scaled, and its key still tells the scalings apart."""
    keys = {
        name: fingerprint(vae, vae.config)
        for name, vae in {
            "own": tiny_vae(), "again": tiny_vae(), "factor": tiny_vae(scaling_factor=1.0),
            "shift": tiny_vae(shift_factor=0.1), "mean": tiny_vae(**statistics(4)),
        }.items()
    }  # fmt: skip
    assert keys["own"] == keys["again"] and len(set(keys.values())) == 4
