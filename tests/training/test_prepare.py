"""``skipdit prepare``: latents and texts in shards, by one process or several, damaged, foreign, and trained on."""

import io
import json
import os
import tarfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from PIL import Image
from safetensors.torch import save_file

from skipdit_cli.errors import SkipditError
from skipdit_cli.models import save_pipeline
from skipdit_cli.processes import Team
from skipdit_cli.skip import add_skip_branches
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.latent_dataset import moments
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.pixel_dataset import Pixels
from skipdit_cli.training.data.samples import read_samples
from skipdit_cli.training.encoded import section, tensor_shard
from skipdit_cli.training.encoded.tensor_shard import open_shard, write_shard
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.run.training_data import latents_of
from skipdit_cli.training.training_settings import TrainingSettings
from tests.support.caption_training import command, files, losses
from tests.support.caption_training import prepare as captioned
from tests.support.pipeline_parts import tiny_vae
from tests.support.processes import run_together

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
FINETUNE = ("--train-batch-size", 2, "--max-train-steps", 2, "--learning-rate", 1e-3, "--random-flip")


@pytest.fixture
def model(tiny_dit, tmp_path):
    """A latent model of classes with skip branches, and six pictures of three classes in ``data``."""
    transformer, rng = tiny_dit(num_layers=2, in_channels=4, out_channels=8), np.random.default_rng(0)
    add_skip_branches(transformer)
    save_pipeline(DiTPipeline(transformer, tiny_vae(), DDIMScheduler(clip_sample=False)), tmp_path / "model")
    for number in range(6):
        (tmp_path / "data" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (20, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "data" / str(number % 3) / f"{number}.png")
    return tmp_path / "model"


@pytest.fixture
def prepare(skipdit, tmp_path, model):
    """``prepare(*flags)`` encodes the pictures and their mirror images into ``kept``."""
    run = ("prepare", model, "--data", tmp_path / "data", "--cache-latents", tmp_path / "kept", "--random-flip")
    return lambda *more: skipdit(*run, *more)


def shards(folder) -> list:
    return sorted(folder.glob("*-*.safetensors"))


def flip(path, keep_time: bool = False) -> None:
    """Change the last byte of a file, and perhaps not its time."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def latents(tmp_path, kept, **flags):
    settings = TrainingSettings(data=str(tmp_path / "data"), cache_latents=kept, random_flip=True, **flags)
    pixels = Pixels(read_samples(settings.data, Demand(num_classes=10)), 16, 3)
    return latents_of(settings, tiny_vae(), pixels, Store(kept), torch.device("cpu"), Team())


def test_what_is_prepared_trains_as_what_the_training_encodes(prepare, skipdit, model, tmp_path):
    dry = prepare("--dry-run", "--json").json
    assert dry["latents"] == {"total": 12, "kept": 0, "encoded": 12, "bytes": 12 * 8 * 8 * 8 * 4}
    assert dry["dry_run"] and dry["samples"] == 6 and not (tmp_path / "kept").exists()
    ran = prepare()
    assert ran.code == 0 and "12 latents encoded; " in ran.stdout and "is free in" in ran.stdout, ran.stderr
    (shard,) = shards(tmp_path / "kept")
    listed = json.loads((tmp_path / "kept" / "manifest.json").read_text())["shards"][shard.name]
    assert listed["entries"] == 12 and listed["data"]["source"] == str(tmp_path / "data")
    assert prepare("--json").json["latents"]["encoded"] == 0

    run = ("finetune", model, "--data", tmp_path / "data", *FINETUNE)
    for name, kept, workers in (("one", "kept", 0), ("two", "new", 0), ("three", "kept", 2)):
        flags = ("-o", tmp_path / name, "--cache-latents", tmp_path / kept, "--dataloader-num-workers", workers)
        ran = skipdit(*run, *flags)
        assert ran.code == 0 and f"{12 if kept == 'kept' else 0} of 12 latents are kept" in ran.stdout, ran.stderr
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    assert losses(tmp_path / "one") == losses(tmp_path / "three")
    assert len(list((tmp_path / "new").iterdir())) == 2, "one shard and the manifest"

    data = latents(tmp_path, tmp_path / "kept")
    data.plan()
    for choice in (Choice(0), Choice(5, mirrored=True)):  # bit for bit what the VAE makes of it alone
        assert torch.equal(data[choice][0], moments(data.vae, data.pixels[choice][0][None])[0])


def test_two_processes_share_the_work_and_one_process_goes_on(model, prepare, tmp_path):
    run = ("prepare", model, "--data", tmp_path / "data", "--cache-latents", tmp_path / "kept", "--json")
    first, second = run_together(2, *run, folder=tmp_path / "logs")
    assert (first.code, second.code, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    assert json.loads(first.stdout)["latents"]["encoded"] == 6 and json.loads(first.stdout)["shards"] == 2
    names = [set(open_shard(path).names) for path in shards(tmp_path / "kept")]
    assert [len(each) for each in names] == [3, 3] and not names[0] & names[1]
    ran = prepare("--json")  # one process, and mirrored as well
    assert ran.json["latents"] | {"bytes": 0} == {"total": 12, "kept": 6, "encoded": 6, "bytes": 0}
    data = latents(tmp_path, tmp_path / "kept")
    data.plan()
    for index in range(6):
        assert torch.equal(
            data.read(Choice(index)), data.make(Choice(index), data.pixels[Choice(index)][0])["moments"]
        )


def test_an_interrupted_run_goes_on_and_makes_no_shard_again(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(section, "MOST_ENTRIES", 4)
    written = []

    def interrupted(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write_shard(*arguments))
        return written[-1]

    monkeypatch.setattr(section, "write_shard", interrupted)
    ran = prepare()
    assert ran.code == 130 and "the same command goes on" in ran.stderr, ran.stderr
    (tmp_path / "kept" / "manifest.json").unlink(missing_ok=True)  # a killed run has written none
    cut = tmp_path / "kept" / f"{written[0].name}.tmp-7.safetensors"
    cut.write_bytes(b"cut off")
    os.utime(cut, (0, 0))
    before = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(section, "write_shard", write_shard)
    assert prepare("--json").json["latents"]["encoded"] == 4 and not cut.exists()
    assert before == {path: path.stat().st_mtime_ns for path in written} and len(shards(tmp_path / "kept")) == 3


def test_a_damaged_shard_names_itself_and_is_made_again_alone(prepare, skipdit, model, tmp_path, monkeypatch):
    monkeypatch.setattr(section, "MOST_ENTRIES", 4)
    assert prepare().code == 0
    whole = {path: path.read_bytes() for path in shards(tmp_path / "kept")}
    damaged = list(whole)[1]
    flip(damaged)
    ran = prepare("--json")
    assert f"{damaged} is damaged" in ran.stderr and ran.json["latents"]["encoded"] == 4
    assert {path: path.read_bytes() for path in shards(tmp_path / "kept")} == whole

    flip(damaged, keep_time=True)  # which training notices when it reads the entry
    run = ("finetune", model, "--data", tmp_path / "data", *FINETUNE, "--cache-latents", tmp_path / "kept")
    ran = skipdit(*run, "-o", tmp_path / "out", "--train-batch-size", 12)
    assert ran.code == 1 and f"{damaged} is damaged at entry 4 of 4; run 'skipdit prepare'" in ran.stderr, ran.stderr
    assert prepare("--json").json["latents"]["encoded"] == 4
    damaged.write_bytes(damaged.read_bytes()[:200])
    (tmp_path / "kept" / "manifest.json").write_text("{")
    ran = skipdit(*run, "-o", tmp_path / "again")
    assert ran.code == 0 and f"{damaged} is damaged" in ran.stderr and "8 of 12 latents are kept" in ran.stdout
    assert {path: path.read_bytes() for path in shards(tmp_path / "kept")} == whole


def test_what_another_run_makes_anew_is_read_by_one_that_has_the_damaged_shard_open(tmp_path):
    entries = {name: {"moments": torch.full((2, 2), float(name))} for name in "123"}
    path = write_shard(tmp_path, "latents", {}, {}, entries)
    latents, whole = section.Section(Store(tmp_path), "latents", {}), path.read_bytes()
    assert not latents.plan(list(entries), lambda: 16).missing
    flip(path, keep_time=True)  # damaged, as the run that has begun does not know
    name = next(name for name in entries if not readable(latents, name))
    (tmp_path / "new").write_bytes(whole)
    (tmp_path / "new").rename(path)
    assert latents.read(name)["moments"].equal(entries[name]["moments"])
    flip(path, keep_time=True)
    assert not readable(latents, name)
    moved = write_shard(tmp_path, "latents", {}, {}, {**entries, "4": entries["1"]})
    path.unlink()
    assert moved != path and latents.read(name)["moments"].equal(entries[name]["moments"])


def readable(latents: section.Section, name: str) -> bool:
    with suppress(SkipditError):
        return latents.read(name) is not None
    return False


def test_the_folder_of_a_stranger(prepare, tmp_path, monkeypatch):
    """Shards of other tensors than their headers list, of absurd sizes, and a manifest that names other files."""
    assert prepare().code == 0
    kept, (path,) = tmp_path / "kept", shards(tmp_path / "kept")
    shard = open_shard(path)
    entries = {name: shard.read(0) for name in shard.names}
    outside = tmp_path / "outside.safetensors"
    path.rename(outside)
    manifest = json.loads((kept / "manifest.json").read_text())
    manifest["shards"] = {"../outside.safetensors": manifest["shards"][path.name]}
    (kept / "manifest.json").write_text(json.dumps(manifest))
    data = latents(tmp_path, kept)
    assert data.plan().kept == 0, "a manifest names no path"

    arguments = (kept, "latents", shard.settings, {})
    other = write_shard(*arguments, {name: {"moments": torch.zeros(3)} for name in entries})
    assert data.plan().kept == 12
    with pytest.raises(SkipditError, match="other latents than this VAE makes; run 'skipdit prepare'"):
        data.read(Choice(0))
    other.unlink()
    short = write_shard(*arguments, entries)
    header = {"skipdit": json.dumps({"format": 1, "kind": "latents", "settings": shard.settings, "data": {}})}
    for metadata in ({}, {"skipdit": "[]"}, header, {"skipdit": header["skipdit"][:-1] + ', "names": ["a"]}'}):
        save_file({"moments": torch.zeros(8), "moments.shape": torch.tensor([[-8]])}, short, metadata)
        assert data.plan().kept == 0
    monkeypatch.setattr(tensor_shard, "MAX_BYTES", 100)
    with pytest.raises(SkipditError, match="but no shard has more"):
        open_shard(short)
    short.write_bytes((1 << 62).to_bytes(8, "little"))
    assert data.plan().kept == 0


def test_latents_of_another_size_and_the_files_of_an_older_version_are_told_apart(skipdit, tmp_path):
    model, data = captioned(tmp_path, "pixart")
    run = ("prepare", model, "--data", data, "--cache-latents", tmp_path / "kept")
    ran = skipdit(*run, "--height", 16, "--width", 16, "--json")
    assert ran.json["latents"]["encoded"] == 3 and ran.json["texts"]["encoded"] == 3, ran.stderr
    ran = skipdit(*command("pixart", model, data, tmp_path / "kept"), "--max-train-steps", 1, "-o", tmp_path / "out")
    assert "3 of 6 latents are kept" in ran.stdout and "3 of 3 texts are kept" in ran.stdout, ran.stderr
    (tmp_path / "kept" / "3f").mkdir()
    ran = skipdit(*run, "--height", 32, "--width", 16, "--label-dropout", 0)
    assert "3 of 3 latents are kept" not in ran.stdout and "2 of 2 texts are kept" in ran.stdout
    assert "6 other latents: of size [16, 16] instead of [32, 16]" in ran.stdout
    assert "of skipdit 0.1, one file for each, which are no longer read" in ran.stderr


def test_shards_of_webdataset_and_the_flags_of_a_preset(skipdit, tiny_dit, tmp_path):
    config = tiny_dit(in_channels=4, out_channels=8).config
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    preset = {"model": {"class": "DiTTransformer2DModel", "config": config}, "train": {"random-flip": "true"}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(preset))
    tiny_vae().save_pretrained(tmp_path / "vae")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.cls", b"3"), ("a.png", b""), ("b.cls", b"4"), ("b.png", b"")):
            if not content:
                file = io.BytesIO()
                Image.new("RGB", (16, 16), (ord(name[0]), 9, 9)).save(file, "png")
                content = file.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    run = ("--preset", tmp_path / "tiny.yaml", "--vae", tmp_path / "vae", "--data", f"wds:{tmp_path / '0.tar'}")
    run += ("--cache-latents", tmp_path / "kept")
    assert skipdit("prepare", *run, "--json").json["latents"]["encoded"] == 4  # mirrored, as the preset trains
    ran = skipdit("train", *run, "-o", tmp_path / "out", "--max-train-steps", 1, "--train-batch-size", 2)
    assert ran.code == 0 and "4 of 4 latents are kept" in ran.stdout, ran.stderr
