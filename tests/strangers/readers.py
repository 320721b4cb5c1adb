"""Every reader of files that may come from strangers: how a valid file is made, how it is spoiled, and how it is read.

A new reader is one line in ``READERS``.
"""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from skipdit_cli import files, media
from skipdit_cli.commands.sample_checksums import SampleChecksums
from tests.strangers import mutations

GOLDEN = Path(__file__).parent.parent / "golden"
RECORD = {
    "model": "m",
    "class_labels": "1",
    "seed": 3,
    "num_inference_steps": 2,
    "cache": "fast",
    "guidance_scale": 1.5,
}
PLAIN = {"checksum": "a", "image_size": 8}


@dataclass(frozen=True)
class Reader:
    """A reader.

    Args:
        name: What is read.
        make: Writes valid files into a folder; readers with the same function share what it wrote.
        file: The one that is spoiled, relative to the folder.
        spoil: Returns a strategy of contents, for the valid content.
        read: Reads the folder.
        share: How many inputs it gets, beside those of another reader; slow ones get less.
    """

    name: str
    make: Callable[[Path], None]
    file: str
    spoil: Callable[[bytes], st.SearchStrategy[bytes]]
    read: Callable[[Path], object]
    share: float = 1.0


def make_dit(folder: Path) -> None:
    """A pipeline of a tiny DiT with names of classes, and skip branches beside it."""
    from diffusers import DiTTransformer2DModel

    from skipdit_cli.models import load_pipeline, save_branches
    from skipdit_cli.skip import add_skip_branches
    from tests.support.tiny_pipelines import write_pipeline
    from tests.support.tiny_transformers import perturbed

    sizes = dict(
        num_attention_heads=1, attention_head_dim=8, in_channels=1, out_channels=2, sample_size=8, patch_size=4
    )
    write_pipeline(folder, perturbed(DiTTransformer2DModel(num_layers=2, num_embeds_ada_norm=10, **sizes).eval()))
    save_branches(add_skip_branches(load_pipeline(folder).transformer), folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": {"0": "cat", "1": "dog"}}))


def make_plain(folder: Path) -> None:
    """A pipeline of a tiny DiT without branches, which can be converted."""
    make_dit(folder)
    shutil.rmtree(folder / "skip")


def make_text(folder: Path) -> None:
    """A tiny text-to-image pipeline, with a LoRA beside it."""
    from peft import LoraConfig, get_peft_model_state_dict

    from tests.support.tiny_pipelines import build

    pipe = build("flux")
    pipe.save_pretrained(folder)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(folder / "lora", transformer_lora_layers=layers, weight_name="lora.safetensors")


def make_official(folder: Path) -> None:
    from safetensors.torch import save_file
    from torch import load

    for name in ("dit_skip", "latte_t2v_skip"):
        shutil.copyfile(GOLDEN / name / "checkpoint.pt", folder / f"{name}.pt")
    data = load(folder / "dit_skip.pt", weights_only=False)
    weights = data.get("ema") or data.get("model") or data
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "dit_skip.safetensors")


def make_plan(folder: Path) -> None:
    from skipdit_cli import CachePolicy, load_pipeline
    from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
    from skipdit_cli.planning.searching.candidate import Candidate
    from skipdit_cli.sampling.schedulers import Sampler

    make_plain(folder / "m")
    sampler = Sampler("dpm++", "lu", {"solver_order": 3})
    candidate = Candidate(sampler, 6, CachePolicy((1, 0), full_steps=(0, 1, 3), damping=0.75))
    made_for = make_made_for(load_pipeline(folder / "m"), candidate, 1.5, 3.625, {"psnr_exact": 38.5})
    save_plan(Plan(candidate, made_for), folder / "plan.yaml", "skipdit calibrate")
    shutil.rmtree(folder / "m")


def make_branch(folder: Path) -> None:
    from torch import ones

    from skipdit_cli.skip.output_branch import OutputBranch

    weights, biases = [[ones(3, 4)], [ones(3, 8)]], [[ones(3)], [ones(3)]]
    OutputBranch("proj_out_2", (2,), 1, 4, weights, biases).save(folder / "branch.safetensors")


PRESET = """about: A tiny model.
source: tests
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 1, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10}
  scheduler: {class: DDIMScheduler, config: {num_train_timesteps: 1000}}
experiment: {study: toy, preset: digits, steps: 2, factor: 1.5}
sweep:
  train-batch-size: [1, 2]
  depth: {shallow: {num_layers: 2}, deep: {num_layers: 4}}
sample: {num-inference-steps: 4, cache-layers: 1, scheduler-arg: [output_branch=branch.safetensors]}
train: {data: digits, train-batch-size: 4, max-train-steps: 1}
"""


def make_preset(folder: Path) -> None:
    (folder / "own.yaml").write_text(PRESET)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


PICTURES = (".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".ppm", ".jp2", ".avif")


def make_pictures(folder: Path) -> None:
    """A picture of each format, and samples with their records."""
    picture = Image.fromarray(pixels(16, 24, 3))
    for suffix in PICTURES:
        if media.is_picture(_touched(folder / f"a{suffix}")):
            picture.save(folder / f"a{suffix}")
    for name in ("png", "jpg"):
        (folder / name).mkdir()
        media.save_picture(picture, folder / name / f"a.{name}", {"settings": {**RECORD, "prompt": ["a cat"]}})
    media.save_video(pixels(4, 16, 16, 3), folder / "clip.gif", 8, {"settings": RECORD})


def _touched(path: Path) -> Path:
    path.touch()
    return path


VIDEOS = {
    "clip.mp4": "-c:v libx264 -pix_fmt yuv420p",
    "clip.mkv": "-c:v libx264 -pix_fmt yuv420p -bf 0",
    "clip.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8",
    "clip.avi": "-c:v mjpeg",
    "clip.mpg": "-c:v mpeg2video",
}


def make_videos(folder: Path) -> None:
    """A clip in each container, the same as a GIF, and as a folder of frames."""
    import subprocess

    import imageio_ffmpeg

    frames = pixels(6, 32, 32, 3)
    source = "-y -v error -f rawvideo -pix_fmt rgb24 -s 32x32 -r 25 -i -"
    for name, options in VIDEOS.items():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *source.split(), *options.split(), str(folder / name)]
        subprocess.run(command, input=frames.tobytes(), check=True)
    media.save_video(frames, folder / "clip.gif", 8, {})
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames[:3]):
        Image.fromarray(frame).save(folder / "frames" / f"{number}.png")


def make_data(folder: Path) -> None:
    """Data folders with metadata, and a picture outside of them."""
    Image.fromarray(pixels(8, 8, 3)).save(folder / "stranger-secret.png")
    rows = [{"file_name": f"{name}.png", "text": f"a {name}"} for name in ("cat", "dog", "owl")]
    for kind in ("captions", "labels"):
        (folder / kind).mkdir()
        for row in rows:
            Image.fromarray(pixels(8, 8, 3)).save(folder / kind / row["file_name"])
    (folder / "captions" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = [f'{row["file_name"]},{number},"{row["text"]}, in a table"' for number, row in enumerate(rows)]
    (folder / "labels" / "metadata.csv").write_text("\n".join(["file_name,label,more", *table]))


def make_shards(folder: Path) -> None:
    with tarfile.open(folder / "000.tar", "w") as tar:
        for name in ("0", "1"):
            picture = io.BytesIO()
            Image.fromarray(pixels(8, 8, 3)).save(picture, "PNG")
            parts = {
                "png": picture.getvalue(),
                "cls": name.encode(),
                "json": json.dumps({"text": f"a {name}"}).encode(),
            }
            for suffix, data in parts.items():
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def make_dataset(folder: Path) -> None:
    import datasets

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["circle", "square"]))
    rows = {"image": [Image.fromarray(pixels(8, 8, 3))] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "saved")


SHARD = f"latents-{'0' * 32}.safetensors"


def make_store(folder: Path) -> None:
    from torch import arange

    from skipdit_cli.training.encoded.tensor_shard import write_shard
    from skipdit_cli.training.encoded.tensor_store import Store

    entries = {f"{name:064}": {"moments": arange(6.0).view(2, 3), "mask": arange(2)} for name in range(3)}
    shard = write_shard(folder, "latents", {"size": 8}, {"name": "digits"}, entries)
    store = Store(folder)
    store.write_manifest(store.shards()[0])
    shutil.copyfile(shard, folder / SHARD)  # under a name that does not depend on its content


def read_shard(folder: Path) -> object:
    from skipdit_cli.training.encoded.tensor_shard import open_shard

    shard = open_shard(folder / SHARD)
    return [shard.read(position) for position in range(len(shard.names))]


def read_store(folder: Path) -> object:
    from skipdit_cli.training.encoded.tensor_store import Store

    return Store(folder).shards()


def recorded() -> dict[str, object]:
    """Return settings that a checkpoint records."""
    from skipdit_cli.training.recorded_settings import BATCH

    return {"use_ema": True, "seed": 0, "files": "x", **dict.fromkeys(BATCH, 2)}


def make_checkpoint(folder: Path) -> None:
    from torch import ones

    from skipdit_cli.training.run.state import Checkpoints, TrainingState, random_state

    rest = {"optimizer": {"state": {0: {"step": ones(()), "exp_avg": ones(2, 2)}}}, "random": [random_state()]}
    state = TrainingState(1, {"a": ones(2, 2)}, {"a": ones(2, 2)}, rest, recorded())
    Checkpoints(folder).save(state)
    rows = [{"step": step, "loss": 0.5, "seconds": 0.1} for step in range(1, 7)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


def make_sharded(folder: Path) -> None:
    """The tensors of a checkpoint of several processes."""
    from torch import arange

    from skipdit_cli.training.distributed.sharded_checkpoint import write_shards

    write_shards({"weight.a": arange(4.0).view(2, 2), "exp_avg.a": arange(4.0).view(2, 2)}, folder / "sharded", 0)


def make_output(folder: Path) -> None:
    """The folder of an interrupted run of ``sample``, and a finished one of ``convert``."""
    (folder / "own.txt").write_text("of the user")
    for name, kind, state in (("out", files.CONVERT, files.FINISHED), ("begun", files.SAMPLE, files.RESUMABLE)):
        (folder / name / "part").mkdir(parents=True)
        (folder / name / "part" / "a.txt").write_text("ours")
        marker = {"schema": 1, "kind": kind, "version": "0", "state": state, "files": ["part/a.txt"]}
        (folder / name / files.MARKER).write_text(json.dumps(marker))
    (folder / "begun" / "partial.json").write_text(json.dumps(PLAIN))
    media.arrays.ArrayFile(folder / "begun" / "partial.npy", 3).write(0, pixels(3, 8, 8, 3))
    checksums = SampleChecksums(folder / "begun" / "partial.sha256", 3)
    checksums.create()
    checksums.write(1, bytes(range(32)))


def make_kept(folder: Path) -> None:
    """What interrupted commands keep: a calibration, a bench, a study."""
    from torch import ones

    from skipdit_cli.bench.kept_rounds import KeptRounds
    from skipdit_cli.bench.timing import Measured
    from skipdit_cli.cache import CacheReport
    from skipdit_cli.planning.searching.journal import Journal
    from skipdit_cli.sampling.generate import Generated

    journal = Journal(folder / "plan.yaml", PLAIN)
    journal.results = {"a": [1.0, 2.0], "b": [3.0]}
    journal.write()
    sample = Generated(pixels(1, 4, 4, 3), ones(1, 1, 4, 4), CacheReport(2, 1, 3, 4), 0.1, 0.2)
    KeptRounds(folder / "bench", PLAIN).save(["a"], [Measured([0.1], [0.2], None, sample)])
    for part in ("results", "measured"):
        (folder / part).mkdir()
        kept = {"key": "a", "value": {"loss": 0.5}, "seconds": 1.5}
        files.write_checked(folder / part / "vanilla-0.json", kept)


def make_statistics(folder: Path) -> None:
    from skipdit_cli.evaluation import features, load_features
    from skipdit_cli.evaluation.kept_statistics import save_statistics
    from skipdit_cli.training.data.moving_digits import scans

    save_statistics(features(load_features("digits"), scans()[0][:8]), folder / "statistics.npz")
    np.savez(folder / "images.npz", pixels(3, 8, 8, 3), np.arange(3))


def make_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    from tests.support.pipeline_parts import word_tokenizer

    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    tokenizer = word_tokenizer("PreTrainedTokenizerFast", bos_token="<s>")
    vision = dict(**sizes, image_size=8, patch_size=4)
    text = dict(
        **sizes, vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=3, eos_token_id=1, pad_token_id=0
    )
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))


def make_prompts(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a cat\na dog\n")


def read_model(folder: Path) -> object:
    from skipdit_cli.models import load_pipeline
    from skipdit_cli.models.outline import read_outline

    read_outline(folder)
    return load_pipeline(folder)


def read_weights(folder: Path) -> object:
    from skipdit_cli.models import load_pipeline

    return load_pipeline(folder)


def read_source_model(folder: Path) -> object:
    from skipdit_cli.conversion.source import open_source

    return open_source(folder, {}).build()


def read_official(name: str, **arguments) -> Callable[[Path], object]:
    from skipdit_cli.conversion.source import Source

    def read(folder: Path) -> object:
        from skipdit_cli.conversion.source import open_source

        source: Source = open_source(folder / name, arguments)
        return source.build()

    return read


def read_vae(folder: Path) -> object:
    from skipdit_cli.models import load_vae

    return load_vae(folder / "vae")


def read_lora(folder: Path) -> object:
    from skipdit_cli.models import load_pipeline
    from skipdit_cli.sampling.fitting import check_lora, load_lora

    path = str(folder / "lora" / "lora.safetensors")
    check_lora(path)
    return load_lora(load_pipeline(folder), path, local_files_only=True)


def read_preset(folder: Path) -> object:
    import typer

    from skipdit_cli.app import app
    from skipdit_cli.commands.values import flags_of
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.planning.plan import plan_of
    from skipdit_cli.presets import load_preset
    from skipdit_cli.studies.study import read_settings
    from skipdit_cli.training.sweep import points_of
    from tests.support.toy_study import STUDY

    commands = typer.main.get_command(app).commands
    path = str(folder / "own.yaml")
    preset = load_preset(path, {name: flags_of(command) for name, command in commands.items()})
    if preset.made_for:
        return plan_of(preset)
    if preset.sweep:
        points_of(preset)
    if preset.experiment:
        read_settings(STUDY, preset.experiment, "Preset own")
    return read_outline(None, path)


def read_plan(folder: Path) -> object:
    from skipdit_cli.planning.plan import load_plan

    return load_plan(folder / "plan.yaml")


def read_output_branch(folder: Path) -> object:
    from skipdit_cli.skip.output_branch import load_output_branch

    return load_output_branch(folder / "branch.safetensors")


def read_made(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from skipdit_cli.commands.replay import read_record
        from skipdit_cli.evaluation.image_set import open_image_set

        if (folder / name).parent != folder:
            image_set = open_image_set(str((folder / name).parent), "--reference", None, None, None)
            image_set.prompts(), image_set.class_labels()
        return read_record(folder / name)

    return read


def read_clip(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        facts = media.probe_video(folder / name)
        if not (folder / name).is_dir():
            media.frame_times(folder / name)
        return facts

    return read


def read_data(name: str, **demand) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from skipdit_cli.training import TrainingSettings
        from skipdit_cli.training.data.demand import Demand
        from skipdit_cli.training.sources.read_source import read_source

        data = name.format(folder)
        samples = read_source(TrainingSettings(data=data, output=None), Demand(**demand))
        for number in range(len(samples)):
            samples.read(number, [0]), samples.digest(number), samples.name(number)
        samples.check_labels(demand.get("num_classes"))
        return str(samples)

    return read


def read_checkpoint(folder: Path) -> object:
    from skipdit_cli.errors import UsageError
    from skipdit_cli.training.run.state import check_whole, load_state

    with contextlib.suppress(UsageError):
        check_whole(folder / "checkpoint-1")
    return load_state(folder / "checkpoint-1", recorded(), force=True)


def read_sharded(folder: Path) -> object:
    from torch import zeros

    from skipdit_cli.training.distributed.sharded_checkpoint import is_sharded, read_shards, shapes_in

    tensors = {"weight.a": zeros(2, 2), "exp_avg.a": zeros(2, 2)}
    if is_sharded(folder / "sharded"):
        shapes_in(folder / "sharded")
    return read_shards(folder / "sharded", tensors)


def read_metrics(folder: Path) -> object:
    from skipdit_cli.reports.loss_curves import make_loss_plot
    from skipdit_cli.training.sweep import final_loss

    return make_loss_plot({"a": folder / "metrics.jsonl"}), final_loss(folder)


def read_marker(folder: Path) -> object:
    list(files.unlisted_files(folder / "out"))
    files.check_resumed(folder / "out", files.CONVERT)
    return files.check_folder(folder / "out", files.CONVERT, overwrite=True)


def read_partial(folder: Path) -> object:
    return files.is_resumed(folder / "begun", files.SAMPLE, PLAIN, False)


def read_begun_array(folder: Path) -> object:
    array = media.arrays.ArrayFile(folder / "begun" / "partial.npy", 3)
    return array.is_whole() and (array.read(), array.read_one(1), array.shape)


def read_begun_checksums(folder: Path) -> object:
    checksums = SampleChecksums(folder / "begun" / "partial.sha256", 3)
    return checksums.is_whole() and [checksums.read(index) for index in range(3)]


def read_journal(folder: Path) -> object:
    from skipdit_cli.planning.searching.journal import Journal

    return Journal(folder / "plan.yaml", PLAIN).results


def read_rounds(folder: Path) -> object:
    from skipdit_cli.bench.kept_rounds import KeptRounds

    kept = KeptRounds(folder / "bench", PLAIN)
    return kept.restore(["a"]), kept.rounds, kept.note()


def read_study(folder: Path) -> object:
    from skipdit_cli.studies.study_run import StudyRun
    from tests.support.toy_study import STUDY, ToySettings

    run = StudyRun(STUDY, ToySettings("digits", 1), (0,), folder)
    return run.seconds(), run.result("vanilla-0")


def read_statistics(folder: Path) -> object:
    from skipdit_cli.evaluation import load_features
    from skipdit_cli.evaluation.kept_statistics import load_statistics

    statistics = load_statistics(folder / "statistics.npz", load_features("digits"))
    return statistics.covariance, statistics.logits


def read_array(folder: Path) -> object:
    from skipdit_cli.evaluation.image_set import open_image_set

    images = open_image_set(str(folder / "images.npz"), "--reference", None, None, None)
    return images.class_labels(), [batch.shape for batch in images.read([slice(0, 2)])]


def read_scorer(folder: Path) -> object:
    from skipdit_cli.evaluation.caption_score import CaptionScorer

    return CaptionScorer(folder)(pixels(1, 8, 8, 3), ["a cat"])


def read_prompts(folder: Path) -> object:
    from skipdit_cli.commands.parsing import read_prompts

    return read_prompts([], folder / "prompts.txt")


TRANSFORMER, SKIP, WEIGHTS = "transformer/config.json", "skip/config.json", "diffusion_pytorch_model.safetensors"
JSON, YAML, TENSORS, TORCH = (
    mutations.json_files, mutations.yaml_files, mutations.safetensors_files, mutations.torch_files,
)  # fmt: skip
T2V = {"num_attention_heads": 2, "sample_size": 4, "num_frames": 3}
READERS = [
    Reader("transformer config", make_dit, TRANSFORMER, JSON, read_model, 0.5),
    Reader("skip config", make_dit, SKIP, JSON, read_model, 0.5),
    Reader("model index", make_dit, "model_index.json", JSON, read_model, 0.5),
    Reader("scheduler config", make_dit, "scheduler/scheduler_config.json", JSON, read_model, 0.5),
    Reader("transformer weights", make_dit, f"transformer/{WEIGHTS}", TENSORS, read_weights, 0.5),
    Reader("skip weights", make_dit, f"skip/{WEIGHTS}", TENSORS, read_weights, 0.5),
    Reader("converted config", make_plain, TRANSFORMER, JSON, read_source_model, 0.5),
    Reader("converted index", make_plain, "model_index.json", JSON, read_source_model, 0.5),
    Reader("converted weights", make_plain, f"transformer/{WEIGHTS}", TENSORS, read_source_model, 0.5),
    Reader("text index", make_text, "model_index.json", JSON, read_weights, 0.2),
    Reader("text transformer", make_text, TRANSFORMER, JSON, read_weights, 0.2),
    Reader("text encoder", make_text, "text_encoder/config.json", JSON, read_weights, 0.2),
    Reader("second text encoder", make_text, "text_encoder_2/config.json", JSON, read_weights, 0.2),
    Reader("text encoder weights", make_text, "text_encoder/model.safetensors", TENSORS, read_weights, 0.2),
    Reader("tokenizer", make_text, "tokenizer/tokenizer.json", JSON, read_weights, 0.2),
    Reader("tokenizer config", make_text, "tokenizer/tokenizer_config.json", JSON, read_weights, 0.2),
    Reader("second tokenizer config", make_text, "tokenizer_2/tokenizer_config.json", JSON, read_weights, 0.2),
    Reader("text scheduler", make_text, "scheduler/scheduler_config.json", JSON, read_weights, 0.2),
    Reader("vae config", make_text, "vae/config.json", JSON, read_vae, 0.5),
    Reader("vae weights", make_text, f"vae/{WEIGHTS}", TENSORS, read_vae, 0.5),
    Reader("lora", make_text, "lora/lora.safetensors", TENSORS, read_lora, 0.2),
    Reader("official .pt", make_official, "dit_skip.pt", TORCH,
           read_official("dit_skip.pt", num_attention_heads=2), 0.5),
    Reader("official video .pt", make_official, "latte_t2v_skip.pt", TORCH,
           read_official("latte_t2v_skip.pt", **T2V), 0.1),
    Reader("official .safetensors", make_official, "dit_skip.safetensors", TENSORS,
           read_official("dit_skip.safetensors", num_attention_heads=2)),
    Reader("preset", make_preset, "own.yaml", YAML, read_preset),
    Reader("plan", make_plan, "plan.yaml", YAML, read_plan),
    Reader("output branch", make_branch, "branch.safetensors", TENSORS, read_output_branch),
    Reader("record in a PNG", make_pictures, "png/a.png", mutations.records, read_made("png/a.png")),
    Reader("record in a JPEG", make_pictures, "jpg/a.jpg", mutations.jpeg_records, read_made("jpg/a.jpg")),
    Reader("record beside a clip", make_pictures, "clip.json", JSON, read_made("clip.gif")),
    *(Reader(f"picture{suffix}", make_pictures, f"a{suffix}",
             mutations.png_files if suffix == ".png" else mutations.spoiled,
             lambda folder, name=f"a{suffix}": media.read_picture(folder / name)) for suffix in PICTURES),
    *(Reader(f"video {name}", make_videos, name, mutations.mp4_files if name == "clip.mp4" else mutations.spoiled,
             read_clip(name), 0.3) for name in VIDEOS),
    Reader("video clip.gif", make_videos, "clip.gif", mutations.spoiled, read_clip("clip.gif")),
    Reader("frames of a video", make_videos, "frames/1.png", mutations.png_files, read_clip("frames")),
    Reader("captions in JSON", make_data, "captions/metadata.jsonl", mutations.json_lines,
           read_data("{}/captions", captions=True)),
    Reader("labels in a table", make_data, "labels/metadata.csv", mutations.csv_files,
           read_data("{}/labels", num_classes=10)),
    Reader("shard with labels", make_shards, "000.tar", mutations.tar_files,
           read_data("wds:{}/000.tar", num_classes=2)),
    Reader("shard with captions", make_shards, "000.tar", mutations.tar_files,
           read_data("wds:{}/000.tar", captions=True)),
    Reader("data set", make_dataset, "saved/data-00000-of-00001.arrow", mutations.spoiled,
           read_data("hf:{}/saved", num_classes=2)),
    Reader("state of a data set", make_dataset, "saved/state.json", JSON, read_data("hf:{}/saved", num_classes=2)),
    Reader("facts of a data set", make_dataset, "saved/dataset_info.json", JSON,
           read_data("hf:{}/saved", num_classes=2)),
    Reader("shard of latents", make_store, SHARD, TENSORS, read_shard),
    Reader("manifest of latents", make_store, "manifest.json", JSON, read_store),
    Reader("checkpoint record", make_checkpoint, "checkpoint-1/state.json", JSON, read_checkpoint),
    Reader("checkpoint weights", make_checkpoint, "checkpoint-1/weights.safetensors", TENSORS, read_checkpoint),
    Reader("checkpoint optimizer", make_checkpoint, "checkpoint-1/optimizer.pt", TORCH, read_checkpoint),
    Reader("index of shards", make_sharded, "sharded/.metadata", mutations.spoiled, read_sharded),
    Reader("shards of a checkpoint", make_sharded, "sharded/__0_0.distcp", mutations.spoiled, read_sharded),
    Reader("losses", make_checkpoint, "metrics.jsonl", mutations.json_lines, read_metrics),
    Reader("marker", make_output, f"out/{files.MARKER}", JSON, read_marker),
    Reader("interrupted sampling", make_output, "begun/partial.json", JSON, read_partial),
    Reader("array of an interrupted sampling", make_output, "begun/partial.npy", mutations.spoiled, read_begun_array),
    Reader("checksums of an interrupted sampling", make_output, "begun/partial.sha256", mutations.spoiled,
           read_begun_checksums),
    Reader("interrupted calibration", make_kept, "plan.yaml.partial.json", mutations.checked_files, read_journal),
    Reader("interrupted bench", make_kept, "bench.partial.json", mutations.checked_files, read_rounds),
    Reader("samples of a bench", make_kept, "bench.partial.safetensors", TENSORS, read_rounds),
    Reader("interrupted study", make_kept, "results/vanilla-0.json", mutations.checked_files, read_study),
    Reader("statistics", make_statistics, "statistics.npz", mutations.npz_files, read_statistics),
    Reader("images in an array", make_statistics, "images.npz", mutations.npz_files, read_array),
    Reader("CLIP config", make_clip, "config.json", JSON, read_scorer, 0.3),
    Reader("CLIP tokenizer", make_clip, "tokenizer_config.json", JSON, read_scorer, 0.3),
    Reader("CLIP preprocessor", make_clip, "preprocessor_config.json", JSON, read_scorer, 0.3),
    Reader("prompts", make_prompts, "prompts.txt", mutations.spoiled, read_prompts),
]  # fmt: skip
