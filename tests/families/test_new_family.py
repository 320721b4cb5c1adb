"""A family from outside the package: one declaration and one line, and every command takes its models."""

import json

import pytest
import torch
from diffusers import ConfigMixin, DiffusionPipeline, DPMSolverMultistepScheduler, ModelMixin, PixArtSigmaPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from PIL import Image
from torch import nn

from skipdit_cli import CachePolicy, LatteClassTransformer3DModel, add_skip_branches, enable_skip_cache, load_pipeline
from skipdit_cli.families import (
    FAMILIES,
    Backbone,
    BlockList,
    Family,
    PipelineAround,
    TextConditioning,
    Training,
    family_of,
    register,
    unregister,
)
from skipdit_cli.trunk import trunk_of
from tests.support.pipeline_parts import TEXT, t5, vae

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
NAME = "RippleTransformer2DModel"


class RippleBlock(nn.Module):
    """A gated MLP on every token. Its second stream is a running sum of what the blocks before it wrote."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.gate, self.write = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, surface, depths, conditioning):
        moved = self.mlp(self.norm(surface + depths)) * self.gate(conditioning)[:, None]
        return surface + moved, depths + self.write(moved)


class RippleTransformer2DModel(ModelMixin, ConfigMixin):
    """A class-conditional denoiser of no paper, whose block list and streams have names of their own."""

    @register_to_config
    def __init__(
        self,
        width: int = 16,
        num_ripples: int = 6,
        in_channels: int = 1,
        out_channels: int = 1,
        sample_size: int = 8,
        patch_size: int = 2,
        num_embeds_ada_norm: int = 10,
    ):
        super().__init__()
        self.patches = PatchEmbed(sample_size, sample_size, patch_size, in_channels, width)
        self.time, self.embed_time = Timesteps(16, True, 0), TimestepEmbedding(16, width)
        self.embed_label = LabelEmbedding(num_embeds_ada_norm, width, dropout_prob=0.1)
        self.ripples = nn.ModuleList(RippleBlock(width) for _ in range(num_ripples))
        self.output = nn.Linear(width, patch_size**2 * out_channels)

    def forward(self, hidden_states, timestep, class_labels, return_dict: bool = True):
        grid, p = hidden_states.shape[-1] // self.config.patch_size, self.config.patch_size
        surface = self.patches(hidden_states)
        depths = torch.zeros_like(surface)
        conditioning = self.embed_time(self.time(timestep).to(surface.dtype)) + self.embed_label(class_labels)
        for ripple in self.ripples:
            surface, depths = ripple(surface, depths, conditioning)
        pixels = self.output(surface + depths).unflatten(1, (grid, grid)).unflatten(-1, (p, p, -1))
        sample = pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class RipplePipeline(DiffusionPipeline):
    """Its parts in one folder."""

    _optional_components = ["vae"]

    def __init__(self, transformer, scheduler, vae=None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)


class EchoTransformer2DModel(ModelMixin, ConfigMixin):
    """A denoiser on captions, called as PixArt's pipelines call their transformer."""

    @register_to_config
    def __init__(
        self,
        width: int = 16,
        num_echoes: int = 4,
        in_channels: int = 2,
        out_channels: int = 2,
        sample_size: int = 8,
        patch_size: int = 1,
        caption_channels: int = TEXT,
    ):
        super().__init__()
        self.enter, self.leave = nn.Linear(in_channels, width), nn.Linear(width, out_channels)
        self.time, self.embed_time = Timesteps(16, True, 0), TimestepEmbedding(16, width)
        self.embed_text = nn.Linear(caption_channels, width)
        self.echoes = nn.ModuleList(RippleBlock(width) for _ in range(num_echoes))

    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        timestep,
        added_cond_kwargs=None,
        encoder_attention_mask=None,
        return_dict: bool = True,
    ):
        surface = self.enter(hidden_states.flatten(2).mT)
        depths = torch.zeros_like(surface)
        conditioning = self.embed_time(self.time(timestep).to(surface.dtype))
        conditioning = conditioning + self.embed_text(encoder_hidden_states).mean(1)
        for echo in self.echoes:
            surface, depths = echo(surface, depths, conditioning)
        sample = self.leave(surface + depths).mT.unflatten(2, hidden_states.shape[2:])
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class EchoConditioning(TextConditioning):
    """The first token of a caption alone."""

    note = "Echoes answer to one token."

    def encode(self, text, device):
        embeds, *_ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, device=device)
        return {"encoder_hidden_states": embeds[:, :1]}


ECHO = Family(
    "EchoTransformer2DModel",
    trunk=Backbone((BlockList("echoes", ("surface", "depths")),), joined="surface", width=("width",)),
    classes=(f"{__name__}.EchoTransformer2DModel",),
    training=Training(("PixArtSigmaPipeline",), captions=EchoConditioning),
)
RIPPLE = Family(
    NAME,
    trunk=Backbone((BlockList("ripples", ("surface", "depths")),), joined="surface", width=("width",)),
    classes=(f"{__name__}.{NAME}", f"{__name__}.RipplePipeline"),
    pipeline=PipelineAround("RipplePipeline", sample_flags="--class-labels 0,1"),
    training=Training(("RipplePipeline",)),
    initialise=lambda transformer: nn.init.zeros_(transformer.output.weight),
)


@pytest.fixture
def registered():
    families = register(RIPPLE), register(ECHO)
    yield
    for family in families:
        unregister(family.name)


@pytest.fixture
def folder(tmp_path, registered):
    """The folder of a seeded transformer without a pipeline."""
    torch.manual_seed(0)
    RippleTransformer2DModel().save_pretrained(tmp_path / "ripple")
    return tmp_path / "ripple"


def test_a_registered_family_is_converted_trained_cached_and_sampled(skipdit, folder, tmp_path):
    converted = skipdit("convert", folder, "-o", tmp_path / "converted", "--json")
    assert converted.code == 0, converted.stderr
    assert converted.json["bitwise_equal"] and converted.json["pairs"] == 3
    assert "sample -m" in converted.stderr and "--class-labels 0,1" in converted.stderr
    index = json.loads((tmp_path / "converted" / "model_index.json").read_text())
    assert (index["_class_name"], index["transformer"]) == ("RipplePipeline", [__name__, NAME])

    data = ("--data", "digits", "--train-batch-size", 4, "--max-train-steps", 3, "--learning-rate", 1e-2)
    for stage in ("skip", "all"):
        run = tmp_path / stage
        trained = skipdit("finetune", "-m", tmp_path / "converted", *data, "--train", stage, "-o", run)
        assert trained.code == 0, trained.stderr
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 3

    pipe = load_pipeline(tmp_path / "all")
    assert type(pipe) is RipplePipeline and all(
        linear.weight.any() for linear in pipe.transformer.skip_branches.linears
    )
    preset = tmp_path / "ripple.yaml"
    preset.write_text(f"model: {{class: {NAME}, config: {{width: 8}}}}")
    begun = skipdit("train", "--preset", preset, *data, "-o", tmp_path / "scratch")
    assert begun.code == 0, begun.stderr

    cached = ("--cache-layers", 1, "--cache-interval", 2, "--steps", 6)
    sampled = skipdit(
        "sample", "-m", tmp_path / "all", "--class-labels", "0,1", *cached, "-o", tmp_path / "digits.png", "--json"
    )
    assert sampled.code == 0, sampled.stderr
    counts = {"steps": 6, "reused_steps": 3, "blocks_run": 3 * 6 + 3 * 2, "blocks_total": 36}
    assert sampled.json["cache"] == counts and (tmp_path / "digits.png").is_file()
    for model in (tmp_path / "converted", tmp_path / "all"):
        assert skipdit("info", "-m", model).code == 0
    quick = ("--rounds", 1, "--warmup", 0, "--batch-size", 1, "--no-exact")
    benched = skipdit("bench", "-m", tmp_path / "all", *cached, *quick, "--json")
    assert benched.code == 0, benched.stderr


def test_a_registered_family_is_trained_and_sampled_on_captions(skipdit, registered, tmp_path):
    torch.manual_seed(0)
    scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    PixArtSigmaPipeline(*t5(), vae(2, 2), EchoTransformer2DModel(), scheduler).save_pretrained(tmp_path / "echo")
    converted = skipdit("convert", tmp_path / "echo", "-o", tmp_path / "converted", "--json")
    assert converted.code == 0, converted.stderr
    assert converted.json["bitwise_equal"] and "--prompt TEXT" in converted.stderr

    (tmp_path / "data").mkdir()
    for name in ("cat", "dog"):
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / f"{name}.png")
    rows = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in ("cat", "dog")]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows))
    run = ("finetune", "-m", tmp_path / "converted", "--data", tmp_path / "data", "-o", tmp_path / "trained")
    trained = skipdit(*run, "--train-batch-size", 2, "--max-train-steps", 3, "--learning-rate", 1e-2)
    assert trained.code == 0 and EchoConditioning.note in trained.stdout, trained.stderr

    sample = ("sample", "-m", tmp_path / "trained", "--prompt", "cat", "--height", 16, "--width", 16, "--steps", 4)
    cached = ("--cache-layers", 1, "--cache-interval", 2, "--pipeline-arg", "use_resolution_binning=false")
    sampled = skipdit(*sample, *cached, "-o", tmp_path / "cat.png", "--json")
    assert sampled.code == 0, sampled.stderr
    assert sampled.json["cache"]["reused_steps"] == 2 and (tmp_path / "cat.png").is_file()


def test_a_reused_step_of_a_registered_family_equals_the_full_one(registered):
    torch.manual_seed(0)
    model = RippleTransformer2DModel().eval()
    given = {
        "hidden_states": torch.randn(2, 1, 8, 8),
        "timestep": torch.full((2,), 500),
        "class_labels": torch.arange(2),
    }
    with torch.no_grad():
        before = model(**given).sample
        for linear in add_skip_branches(model).linears:
            nn.init.normal_(linear.weight, std=0.1)
        after = model(**given).sample
        cache = enable_skip_cache(model, CachePolicy(1, interval=3))
        assert not torch.equal(before, after)
        assert all(torch.equal(model(**given).sample, after) for _ in range(3))
    assert cache.trace == ["full", "reused", "reused"] and trunk_of(model).backbone == RIPPLE.trunk


def test_an_unregistered_family_leaves_nothing_behind(skipdit, folder, tmp_path):
    unregister(NAME)
    try:
        refused = skipdit("convert", folder, "-o", tmp_path / "out")
        assert refused.code == 2 and NAME in refused.stderr and not (tmp_path / "out").exists()
        assert NAME not in FAMILIES and family_of(NAME) == Family(NAME)
    finally:
        register(RIPPLE)


def test_a_family_replaces_the_one_of_its_name():
    name = LatteClassTransformer3DModel.__name__
    held = family_of(name)
    try:
        assert register(Family(name)) is family_of(name) and family_of(name).trunk is None
    finally:
        register(held)
