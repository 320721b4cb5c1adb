"""Bad input, one table: every row ends with its exit code and one sentence on stderr, and leaves nothing behind."""

import importlib.util
import json
import os
import pickle
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from tests.support.tiny_pipelines import write_pipeline


class Case(NamedTuple):
    """``{w}`` in ``command`` is the folder of ``world``; the run's own folder is empty.

    Args:
        says: Part of the sentence.
        given: A patch of the machine, by its name in ``MACHINE``.
        keeps: The run had begun, so what it wrote before stays.
    """

    name: str
    command: str
    code: int
    says: str
    given: str = ""
    keeps: bool = False


def no_room(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=0))


def full_disk(monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def no_token(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)


def no_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)


MACHINE = {"no gradio": no_gradio, "no room": no_room, "full disk": full_disk, "no gpu": no_gpu, "no token": no_token}
CONVERT, SAMPLE = "convert {w}/tiny -o out", "sample -m {w}/skip -o out.png --class-labels 0 --steps 4"
VIDEO, FREE = "sample -m {w}/latte -o out.mp4 --steps 2", "sample -m {w}/free -o out.gif --steps 2"
TEXT = "sample -m {w}/text -o out.mp4 --steps 2"
CAT = f"{TEXT} --prompt cat"
PARTS = "convert {w}/text/transformer -o out --text-from {w}"
BENCH = "bench -m {w}/skip --steps 4 --rounds 1 --warmup 0 --batch-size 1 --no-exact"
FINETUNE = "finetune -m {w}/skip --data {w}/images -o out --train-batch-size 2 --max-train-steps 3"
TRAIN = "train --preset {w}/tiny.yaml --data {w}/images -o out --train-batch-size 2 --max-train-steps 2"

PREPARE = "prepare --data {w}/images --cache-latents out"
CASES = [
    Case("unknown command", "smaple", 2, "No such command 'smaple'"),
    Case("unknown flag", "convert --modle x", 2, "No such option: --modle"),
    Case("flag in snake case", "sample --num_inference_steps 3", 2, "--num-inference-steps"),
    Case("flag of another type", "sample --seed x", 2, "'--seed'"),
    Case("unknown preset", "presets show dit-xl2-256", 2, "Did you mean 'dit-xl-2-256'"),
    Case("preset is not YAML", "presets show {w}/broken.yaml", 2, "not readable YAML"),
    Case("preset with an unknown key", "sample --preset {w}/typo.yaml", 2, "Did you mean 'seed'"),
    Case("preset with an unknown command", "info --preset {w}/command.yaml", 2, "Did you mean 'sample'"),
    Case("preset with a value of another type", "finetune --preset {w}/value.yaml", 2, "'--learning-rate'"),
    Case("preset that does not fit", "presets check {w}/value.yaml", 3, "1 of 1 presets do not fit"),
    Case("info without a model", "info", 2, "model"),
    Case("info of nothing", "info {w}/missing", 2, "missing"),
    Case("hub id without a network", "info facebook/DiT-XL-2-256", 2, "facebook/DiT-XL-2-256"),
    Case("markdown of no table", "info --markdown", 2, "--families"),
    Case("all families and one model", "info {w}/tiny --families", 2, "leave one of the two out"),
    Case("hardware that is not known", "info {w}/tiny --plan-hardware 8xFOO", 2, "known are B200, H200, H100"),
    Case("no hardware", "info {w}/tiny --plan-hardware 0xH100", 2, "expected 1 to 100,000 devices"),
    Case("hardware that is junk", "info {w}/tiny --plan-hardware ''", 2, "expected COUNTxDEVICE, such as 8xH100"),
    Case("CPU of no memory", "info {w}/tiny --plan-hardware 1xCPU", 2, "such as 1xCPU:24GB"),
    Case("plan without hardware", "info {w}/tiny --train-batch-size 8", 2, "without --plan-hardware"),
    Case("plan of another stage", "info {w}/tiny --plan-hardware L4 --train trunk", 2, "one of skip, all"),
    Case("plan of another size", "info {w}/tiny --plan-hardware L4 --height 64", 2, "fixes its size"),
    Case("nothing to score", "evaluate {w}/missing --reference digits", 2, "missing, which is not there"),
    Case("scores of one file", "evaluate {w}/plain.png --reference digits", 2, "neither a folder nor an .npz file"),
    Case("scores of an empty folder", "evaluate {w}/nothing --reference digits", 2, "neither images nor videos"),
    Case("scores without a feature network", "evaluate {w}/images", 2, "Got no --features"),
    Case("no such feature network", "evaluate {w}/images --features inception", 2, "which is no file"),
    Case("a checkpoint as a feature network", "evaluate {w}/images --features {w}/other.pt", 2, "no TorchScript"),
    Case("no such reference", "evaluate {w}/images --features digits --reference x", 2, "--reference x, which is not"),
    Case("unknown metric", "evaluate {w}/images --reference digits --metrics racall", 2, "Did you mean 'recall'"),
    Case("a list of no metrics", "evaluate {w}/images --reference digits --metrics ,", 2, "Got --metrics '' but"),
    Case("metric in capitals", "evaluate {w}/images --reference digits --metrics FID", 2, "Did you mean 'fid'"),
    Case(
        "metric without a reference", "evaluate {w}/images --features digits --metrics kid", 2, "without --reference"
    ),
    Case("no such split to score", "evaluate {w}/images --reference digits:dev", 2, "--reference digits:dev, but"),
    Case("CLIP score without CLIP", "evaluate {w}/images --reference digits --metrics clip_score", 2, "--clip DIR"),
    Case("CLIP that is not there", "evaluate {w}/images --reference digits --clip x", 2, "nothing is downloaded"),
    Case("captions of no use", "evaluate {w}/images --reference digits --captions x", 2, "without --clip DIR"),
    Case("statistics of another suffix", "evaluate {w}/images --features digits --save-statistics a.pt", 2, ".npz"),
    Case("no such study", "study brances", 2, "Did you mean 'branches'"),
    Case("a study of another size", "study branches --size medium", 2, "expected small or full"),
    Case("no seeds", "study branches --seeds 0", 2, "--seeds 0 but expected 1 or more"),
    Case("settings of another study", "study scaling --preset study-branches-small", 2, "of study 'branches'"),
    Case("a preset without an experiment", "study scaling --preset digits", 2, "no experiment"),
    Case("a study over a folder of others", "study branches -o {w}/images --overwrite", 2, "not ours to replace"),
    Case("a study of files that are not there", "study released", 2, "missing file"),
    Case("scores of one image", "evaluate {w}/listed --reference digits", 2, "need at least 2"),
    Case("unreadable image", "evaluate {w}/bad-images --reference digits", 2, "broken.png"),
    Case("convert without an output", "convert {w}/tiny", 2, "--output"),
    Case("missing checkpoint", "convert {w}/missing.pt -o out", 2, "missing.pt"),
    Case("truncated checkpoint", "convert {w}/truncated.pt -o out", 2, "truncated.pt cannot be read"),
    Case("empty checkpoint", "convert {w}/empty.pt -o out", 2, "empty.pt"),
    Case("pickle that runs code", "convert {w}/pickle.pt -o out", 2, "pickle.pt is refused"),
    Case("checkpoint of code in a zip", "convert {w}/code.pt -o out", 2, "code.pt is refused"),
    Case("checkpoint of another model", "convert {w}/other.pt -o out", 2, "no DiT of the official layout"),
    Case("checkpoint of no tensors", "convert {w}/list.pt -o out", 2, "holds no state dict"),
    Case("folder of another model", "convert {w}/unet -o out", 2, "UNet2DModel"),
    Case("empty folder", "convert {w}/nothing -o out", 2, "nothing"),
    Case("truncated weights", "convert {w}/short -o out", 2, "cannot be read"),
    Case("weights of another shape", "convert {w}/wide -o out", 2, "does not fit"),
    Case("damaged configuration", "convert {w}/config -o out", 2, "cannot be read as JSON"),
    Case("no weights", "convert {w}/hollow -o out", 2, "holds no weights"),
    Case("converted already", "convert {w}/skip -o out", 2, "has skip branches already"),
    Case("heads of a folder", f"{CONVERT} --num-attention-heads 3", 2, "--num-attention-heads"),
    Case("unknown merge", f"{CONVERT} --merge residaul", 2, "Did you mean 'residual'"),
    Case("unknown time embedding", f"{CONVERT} --time-embedding x", 2, "allowed are auto, official, diffusers"),
    Case("existing output", "convert {w}/tiny -o {w}/skip", 2, "exists"),
    Case("unwritable output", "convert {w}/tiny -o {w}/file/out", 2, "Cannot write to"),
    Case("no room for the output", CONVERT, 2, "free", "no room"),
    Case("full disk while saving", CONVERT, 1, "No space left on device", "full disk"),
    Case("hub id of another form", f"{CONVERT} --push-to-hub dit", 2, "OWNER/NAME"),
    Case("hub id that is an address", f"{CONVERT} --push-to-hub https://huggingface.co/a/b", 2, "OWNER/NAME"),
    Case("push without a token", f"{CONVERT} --push-to-hub alice/dit", 2, "run 'hf auth login'", "no token"),
    Case("push offline", f"{CONVERT} --push-to-hub alice/dit", 2, "HF_HUB_OFFLINE=1"),
    Case("push of a dry run", f"{CONVERT} --dry-run --push-to-hub alice/dit", 2, "HF_HUB_OFFLINE=1"),
    Case("private without a push", f"{CONVERT} --private", 2, "--private without --push-to-hub"),
    Case("preset that pushes", f"{CONVERT} --preset {{w}}/push.yaml", 2, "give --push-to-hub by hand"),
    Case("page without gradio", "play", 2, "run pip install 'skipdit-cli[play]'", "no gradio"),
    Case("page of two models", "play {w}/tiny -m {w}/skip", 2, "Got a model twice"),
    Case("page of a prompts file", "play --prompts-file {w}/file", 2, "give --prompt TEXT"),
    Case("page of no plan", "play --plan {w}/tiny.yaml", 2, "has no 'made_for'"),
    Case("page of a folder without plans", "play --plan {w}/nothing", 2, "a folder without .yaml files"),
    Case("page on a port too large", "play --port 70000", 2, "--port 70000 but expected at most 65535"),
    Case("page of one step", "play --steps 1", 2, "expected 2 or more"),
    Case("no model to sample", "sample -o out.png", 2, "model"),
    Case("preset without weights", "sample --preset dit-s-8-256 -o out.png", 2, "dit-s-8-256"),
    Case("truncated branches", "sample -m {w}/cut -o out.png --steps 2", 2, "cannot be read"),
    Case("N too deep", f"{SAMPLE} --cache-layers 3", 2, "valid 1..2"),
    Case("N below 0", f"{SAMPLE} --cache-layers -1", 2, "--cache-layers -1"),
    Case("both ends too deep", f"{SAMPLE} --cache-layers 4:2", 2, "FRONT + BACK of at most 5"),
    Case("N of three numbers", f"{SAMPLE} --cache-layers 1:0:1", 2, "FRONT:BACK"),
    Case("two N", f"{SAMPLE} --cache-layers 1,2", 2, "one N"),
    Case("residual of the noise", f"{SAMPLE} --cache-layers 0 --cache-target residual", 2, "leave the target out"),
    Case("damping above 1", f"{SAMPLE} --cache-layers 1 --forecast-damping 2", 2, "--forecast-damping 2"),
    Case("K of 0", f"{SAMPLE} --cache-layers 1 --cache-interval 0", 2, "--cache-interval 0"),
    Case("K without N", f"{SAMPLE} --cache-interval 2", 2, "without --cache-layers"),
    Case("forecast without N", f"{SAMPLE} --forecast linear", 2, "--forecast without --cache-layers"),
    Case("target without N", f"{SAMPLE} --cache-target residual", 2, "--cache-target without --cache-layers"),
    Case("seed below 0", f"{SAMPLE} --seed=-1", 2, "--seed -1"),
    Case("seed of a conversion below 0", f"{CONVERT} --merge replace --seed=-1", 2, "--seed -1 but expected 0"),
    Case("seed too large", f"{SAMPLE} --seed 99999999999999999999", 2, "--seed 9999"),
    Case("npz of another kind", f"{SAMPLE} --npz out.png", 2, ".npz"),
    Case("history that is no JSON", "sample --from {w}/history.png -o out.png", 2, "does not say how it was made"),
    Case("history that is a list", "sample --from {w}/list.png -o out.png", 2, "does not say how it was made"),
    Case("branches with a part missing", "sample -m {w}/partial -o out.png --steps 2", 2, "incomplete"),
    Case("branches without weights", "sample -m {w}/weightless -o out.png --steps 2", 2, "cannot be read"),
    Case("unknown time embedding on disk", "sample -m {w}/timed -o out.png --steps 2", 2, "official, diffusers"),
    Case("names that are numbers", "convert {w}/numbers.pt -o out", 2, "holds no state dict"),
    Case("heads in words", "convert {w}/heads -o out", 2, "num_attention_heads 'two'"),
    Case("another pipeline", "convert {w}/pipeline -o out", 2, "StableDiffusionPipeline"),
    Case("label of a half", "finetune -m {w}/skip --data {w}/halves -o out", 2, "no whole number"),
    Case("window upside down", f"{SAMPLE} --cache-layers 1 --cache-window 50:700", 2, "START > END"),
    Case("window of one number", f"{SAMPLE} --cache-layers 1 --cache-window 700", 2, "START:END"),
    Case("more full steps than steps", f"{SAMPLE} --cache-layers 1 --full-steps 9", 2, "9"),
    Case("full steps and K", f"{SAMPLE} --cache-layers 1 --full-steps 2 --cache-interval 2", 2, "give one of the two"),
    Case("full steps in words", f"{SAMPLE} --cache-layers 1 --full-steps two", 2, "--full-steps 'two'"),
    Case("unknown forecast", f"{SAMPLE} --cache-layers 1 --forecast cubic", 2, "cubic"),
    Case("unknown target", f"{SAMPLE} --cache-layers 1 --cache-target inside", 2, "inside"),
    Case("label out of range", f"{SAMPLE} --class-labels 10", 2, "0..9"),
    Case("negative label", f"{SAMPLE} --class-labels=-1", 2, "0..9"),
    Case("label in words", f"{SAMPLE} --class-labels cat", 2, "--class-labels"),
    Case("no step", f"{SAMPLE} --steps 0", 2, "--steps 0"),
    Case("more steps than the training had", f"{SAMPLE} --steps 1001", 2, "1000"),
    Case("no image", f"{SAMPLE} --num-images 0", 2, "--num-images 0"),
    Case("guidance below 1", f"{SAMPLE} --guidance-scale 0.5", 2, "--guidance-scale 0.5"),
    Case("guided channels", f"{SAMPLE} --cfg-channels 2", 2, "3 or all"),
    Case("unknown scheduler", f"{SAMPLE} --scheduler dmp++", 2, "Did you mean 'dpm++'"),
    Case("float16 on the CPU", f"{SAMPLE} --device cpu --dtype float16", 2, "--dtype bfloat16"),
    Case("unknown dtype", f"{SAMPLE} --dtype float61", 2, "Did you mean 'float16'"),
    Case("no such device", f"{SAMPLE} --device cuda", 2, "no CUDA device", "no gpu"),
    Case("picture that exists", "sample -m {w}/skip -o {w}/plain.png", 2, "exists"),
    Case("picture below a file", "sample -m {w}/skip -o {w}/file/a.png", 2, "file"),
    Case("picture of another kind", "sample -m {w}/skip -o out.bmp", 2, ".png"),
    Case("video of an image model", f"{SAMPLE} -o out.mp4", 2, "makes images; expected a .png"),
    Case("frames of an image", f"{SAMPLE} --num-frames 4", 2, "--num-frames 4, but this model makes images"),
    Case("frame rate of an image", f"{SAMPLE} --fps 8", 2, "--fps 8, but this model makes images"),
    Case("picture of a video model", f"{VIDEO} -o out.png", 2, "makes videos; expected a .mp4 or .gif"),
    Case("video of another kind", f"{VIDEO} -o out.avi", 2, ".mp4 or .gif"),
    Case("more frames than positions", f"{VIDEO} --num-frames 5", 2, "1..4"),
    Case("no frame", f"{VIDEO} --num-frames 0", 2, "--num-frames 0"),
    Case("no frame a second", f"{VIDEO} --fps 0", 2, "--fps 0"),
    Case("label out of range of a video", f"{VIDEO} --class-labels 10", 2, "0..9"),
    Case("N too deep for a video", f"{VIDEO} --cache-layers 2", 2, "valid 1..1"),
    Case("label of a model without classes", f"{FREE} --class-labels 3", 2, "has no classes"),
    Case("guidance of a model without classes", f"{FREE} --guidance-scale 7", 2, "has no classes"),
    Case("no text", TEXT, 2, "Got no --prompt"),
    Case("class of a model of texts", f"{TEXT} --class-labels 3", 2, "--class-labels 3, but this is a text-"),
    Case("text of a model of classes", "sample -m {w}/skip -o out.png --prompt cat", 2, "a class-conditional model"),
    Case("text of a model of nothing", f"{FREE} --prompt cat", 2, "an unconditional model, which takes none"),
    Case("text and class", f"{SAMPLE} --prompt cat", 2, "--prompt and --class-labels"),
    Case("empty text", f"{TEXT} --prompt ' '", 2, "empty --prompt"),
    Case("texts twice", f"{CAT} --prompts-file {{w}}/file", 2, "give one of the two"),
    Case("missing file of texts", f"{TEXT} --prompts-file {{w}}/missing", 2, "No such file"),
    Case("file of texts without one", f"{TEXT} --prompts-file {{w}}/blank", 2, "holds no text"),
    Case("file of texts that is a picture", f"{TEXT} --prompts-file {{w}}/plain.png", 2, "no text in UTF-8"),
    Case("text without an encoder", "sample -m {w}/mute -o out.mp4 --prompt cat", 2, "--text-from maxin-cn/Latte-1"),
    Case("image that is none", f"{CAT} --image {{w}}/clip.mp4", 2, "cannot be read as a picture"),
    Case("image that is missing", f"{CAT} --image {{w}}/missing.png", 2, "missing.png, which is not a file"),
    Case("image that is not taken", f"{CAT} --image {{w}}/images/0/0.png", 2, "--image, which a LattePipeline"),
    Case("image of classes", f"{SAMPLE} --image {{w}}/images/0/0.png", 2, "--image, which only a text-conditional"),
    Case("strength of no image", f"{CAT} --strength 0.5", 2, "without --image"),
    Case("strength over 1", f"{CAT} --strength 2 --image {{w}}/images/0/0.png", 2, "--strength 2"),
    Case("strength of no step", f"{CAT} --strength 0.1 --image {{w}}/images/0/0.png", 2, "leaves no step of 2"),
    Case("argument without a value", f"{CAT} --pipeline-arg eta", 2, "expected KEY=VALUE"),
    Case("argument that is not taken", f"{CAT} --pipeline-arg etaa=1", 2, "Did you mean 'eta'"),
    Case("argument with a flag", f"{CAT} --pipeline-arg video_length=2", 2, "give --num-frames"),
    Case("argument of ours", f"{CAT} --pipeline-arg output_type=pil", 2, "which no text can give"),
    Case("argument twice", f"{CAT} --pipeline-arg eta=1 --pipeline-arg eta=0", 2, "eta twice"),
    Case("argument that is no YAML", f"{CAT} --pipeline-arg eta=[1", 2, "not readable YAML"),
    Case("argument of classes", f"{SAMPLE} --pipeline-arg eta=1", 2, "only a text-conditional"),
    Case("argument of another type", f"{CAT} --pipeline-arg timesteps=a", 2, "LattePipeline refuses"),
    Case("unknown offload", f"{CAT} --cpu-offload all", 2, "allowed are model and group"),
    Case("offload on the CPU", f"{CAT} --cpu-offload model --device cpu", 2, "this run is on the CPU"),
    Case("missing LoRA", f"{CAT} --lora {{w}}/missing", 2, "missing, which does not exist"),
    Case("LoRA of a pipeline without", f"{CAT} --lora {{w}}/text", 2, "a LattePipeline takes none"),
    Case("tiles without a VAE", f"{SAMPLE} --vae-tiling", 2, "the VAE of this model is none"),
    Case("negative text without guidance", f"{CAT} --negative-prompt dog --guidance-scale 1", 2, "guidance is off"),
    Case("negative text of classes", f"{SAMPLE} --negative-prompt dog", 2, "only a text-conditional"),
    Case("height of classes", f"{SAMPLE} --height 16", 2, "only a text-conditional"),
    Case("height off the grid", f"{CAT} --height 18", 2, "--height 18 but expected a multiple of 4"),
    Case("width the pipeline refuses", f"{CAT} --width 12", 2, "LattePipeline refuses"),
    Case("width of 0", f"{CAT} --width 0", 2, "--width 0"),
    Case("some of the frames of a text", f"{CAT} --num-frames 3", 2, "makes 4, or 1"),
    Case("guided channels of a text", f"{CAT} --cfg-channels 3", 2, "--cfg-channels 3"),
    Case("picture of a text", f"{CAT} -o out.png", 2, "makes videos"),
    Case("missing decoder", f"{CAT} --vae {{w}}/missing", 2, "--vae {w}/missing, which is no folder"),
    Case("decoder without a network", f"{CAT} --vae maxin-cn/Latte-1/vae", 2, "from the hub or its local cache"),
    Case("decoder that is a file", f"{CAT} --vae {{w}}/file", 2, "file, which is no folder"),
    Case("empty folder of a decoder", f"{CAT} --vae {{w}}/nothing", 2, "nothing, which cannot be read: "),
    Case("decoder of another kind", f"{CAT} --vae {{w}}/text/transformer", 2, "holds a LatteTransformer3DModel"),
    Case("decoder of other latents", f"{SAMPLE} --vae {{w}}/text", 2, "4 latent channels, but the model has 1"),
    Case("text parts for classes", "convert {w}/tiny/transformer -o out --text-from {w}/text", 2, "needs no text"),
    Case("text parts for a pipeline", "convert {w}/text -o out --text-from {w}/text", 2, "is a whole pipeline"),
    Case("text parts that are none", f"{PARTS}/mute", 2, "has no tokenizer"),
    Case("text parts of no pipeline", f"{PARTS}/nothing", 2, "holds no model"),
    Case("text parts that are missing", f"{PARTS}/missing", 2, "--text-from"),
    Case("text parts of another width", f"{PARTS}/narrow", 2, "d_model 8, but the model has caption_channels 12"),
    Case("calibrate without a budget", "calibrate -m {w}/skip -o plan.yaml", 2, "one of --cost, --speedup"),
    Case("calibrate a full run", "calibrate -m {w}/skip --cost 50 -o plan.yaml", 2, "less than the full run"),
    Case(
        "calibrate a branch on one sample",
        "calibrate -m {w}/skip --cost 5 --output-branch --batch-size 1 -o plan.yaml",
        2,
        "one batch of 8 samples or more",
    ),
    Case("calibrate with noise", "calibrate -m {w}/skip --cost 5 --scheduler ddpm -o plan.yaml", 2, "deterministic"),
    Case("bench without a text", "bench -m {w}/text --steps 4 -o out", 2, "Got no --prompt"),
    Case("bench a text of classes", f"{BENCH} --prompt cat", 2, "a class-conditional model"),
    Case("bench a text of random weights", "bench -p dit-s-2-256 --random-weights --prompt cat", 2, "no text encoder"),
    Case("mp4 of odd size", "sample -m {w}/odd -o out.mp4 --steps 2", 2, "9x9"),
    Case("folder of odd size", "sample -m {w}/odd -o out --steps 2", 2, "give -o NAME.gif"),
    Case("video that exists", "sample -m {w}/latte -o {w}/clip.mp4", 2, "clip.mp4 exists"),
    Case("video whose history exists", "sample -m {w}/latte -o {w}/clip.gif", 2, "clip.json exists"),
    Case("video below a file", "sample -m {w}/latte -o {w}/file/a.mp4", 2, "file"),
    Case("video without a history", "sample --from {w}/bare.mp4 -o out.mp4", 2, "bare.json"),
    Case("video with a damaged history", "sample --from {w}/clip.mp4 -o out.mp4", 2, "does not say how it was made"),
    Case("replay of no video", "sample --from {w}/missing.mp4 -o out.mp4", 2, "missing.mp4 is not a file"),
    Case("picture without a history", "sample --from {w}/plain.png -o out.png", 2, "plain.png"),
    Case("replay of no picture", "sample --from {w}/file -o out.png", 2, "file"),
    Case("bench N too deep", f"{BENCH} --cache-layers 3", 2, "valid 1..2"),
    Case("bench K of 0", f"{BENCH} --cache-interval 0", 2, "--cache-interval 0"),
    Case("bench list in words", f"{BENCH} --cache-interval two", 2, "--cache-interval 'two'"),
    Case("bench unknown forecast", f"{BENCH} --forecast cubic", 2, "cubic"),
    Case("bench label out of range", f"{BENCH} --class-labels 99", 2, "0..9"),
    Case("bench random weights of nothing", "bench --random-weights", 2, "--preset"),
    Case("bench existing output", f"{BENCH} -o {{w}}/latte", 2, "exists"),
    Case("bench picture of another kind", f"{BENCH} --picture a.jpg", 2, "expected a .png file"),
    Case("bench existing picture", f"{BENCH} --picture {{w}}/plain.png", 2, "exists"),
    Case("bench into no card", f"{BENCH} --update-card", 2, "README.md does not exist"),
    Case("bench into a card of the hub", "bench -m a/b --update-card", 2, "-m/--model FOLDER"),
    Case("bench into a card of nothing", "bench --preset digits --update-card", 2, "-m/--model FOLDER"),
    Case("bench into a card of no text", "bench -m {w}/binary --update-card", 2, "cannot be read"),
    Case("bench too slow", f"{BENCH} --cache-interval 2 --min-speedup 1000", 3, "1000"),
    Case("guide without such a topic", "guide plan", 2, "Did you mean 'plans'"),
    Case("demo existing output", "demo -o {w}/tiny", 2, "exists"),
    Case("demo unwritable output", "demo -o {w}/file/out", 2, "Cannot write to"),
    Case("demo of no step", "demo --steps 0", 2, "--steps 0"),
    Case("training pushed nowhere", f"{FINETUNE} --push-to-hub /tmp/dit", 2, "OWNER/NAME"),
    Case("training pushed without a token", f"{TRAIN} --push-to-hub alice/dit", 2, "hf auth login", "no token"),
    Case("missing data", "finetune -m {w}/skip --data {w}/missing -o out", 2, "is not a folder"),
    Case("data without an image", "finetune -m {w}/skip --data {w}/nothing -o out", 2, "there is no image"),
    Case("unreadable images", "finetune -m {w}/skip --data {w}/bad-images -o out", 2, "above 1 %"),
    Case("data of more classes", "finetune -m {w}/skip --data {w}/classes -o out", 2, "classes 0..9"),
    Case("damaged list of images", "finetune -m {w}/skip --data {w}/listed -o out", 2, "metadata.jsonl"),
    Case("no data", "finetune -m {w}/skip -o out", 2, "--data"),
    Case("no run folder", "finetune -m {w}/skip --data {w}/images", 2, "--output"),
    Case("run folder in use", "finetune -m {w}/skip --data {w}/images -o {w}/tiny", 2, "not empty"),
    Case("run folder below a file", "finetune -m {w}/skip --data {w}/images -o {w}/file/out", 2, "not a writable"),
    Case("nothing to resume", f"{FINETUNE} --resume-from-checkpoint latest", 1, "no checkpoint"),
    Case("resume from no checkpoint", f"{FINETUNE} --resume-from-checkpoint {{w}}/tiny", 2, "is no checkpoint"),
    Case("learning rate of 0", f"{FINETUNE} --learning-rate 0", 2, "--learning-rate 0"),
    Case("label dropout of 1", f"{FINETUNE} --label-dropout 1", 2, "--label-dropout 1"),
    Case("unknown weighting", f"{FINETUNE} --weighting-scheme logitnormal", 2, "logit_normal"),
    Case("logits without spread", f"{FINETUNE} --logit-std 0", 2, "--logit-std 0"),
    Case("number of another weighting", f"{FINETUNE} --mode-scale 1", 2, "--mode-scale 1.0 without"),
    Case("weighting without flow matching", f"{FINETUNE} --weighting-scheme mode", 2, "which is for flow matching"),
    Case("size of a model of classes", f"{FINETUNE} --height 12", 2, "this model is of 8 pixels"),
    Case("height of 0", f"{FINETUNE} --height 0", 2, "--height 0"),
    Case("no LoRA there", f"{FINETUNE} --lora {{w}}/missing", 2, "which does not exist"),
    Case("LoRA below everything", f"{FINETUNE} --train all --lora {{w}}/missing", 2, "--lora with --train all"),
    Case("batch of 0", f"{FINETUNE} --train-batch-size 0", 2, "--train-batch-size 0"),
    Case("unknown schedule", f"{FINETUNE} --lr-scheduler cosin", 2, "cosine"),
    Case("unknown stage", f"{FINETUNE} --train trunk", 2, "--train trunk"),
    Case(
        "loss that is not a number", f"{FINETUNE} --learning-rate 1e30 --train all", 1, "loss became nan", keeps=True
    ),
    Case("full disk at a checkpoint", FINETUNE, 1, "No space left on device", "full disk", keeps=True),
    Case("prepare without a folder", "prepare {w}/skip --data {w}/images", 2, "no --cache-latents"),
    Case("prepare without data", "prepare {w}/skip --cache-latents out", 2, "no --data"),
    Case("prepare without a model", "prepare --data {w}/images --cache-latents out", 2, "no model"),
    Case("prepare pixels", f"{PREPARE} -m {{w}}/skip", 2, "works on pixels"),
    Case("prepare random crops", f"{PREPARE} -m {{w}}/skip --crop random", 2, "one latent a sample"),
    Case("prepare with two VAEs", f"{PREPARE} -m {{w}}/skip --vae {{w}}/tiny", 2, "give one of them"),
    Case("a VAE of no model", f"{PREPARE} --vae {{w}}/tiny", 2, "without --preset"),
    Case("a VAE that is not there", f"{PREPARE} --preset {{w}}/tiny.yaml --vae {{w}}/missing", 2, "missing"),
    Case("latents among the data", "prepare {w}/skip --data {w} --cache-latents {w}/out", 2, "lies inside"),
    Case("latents in a file", "prepare {w}/skip --data {w}/images --cache-latents {w}/file", 2, "which is a file"),
    Case("train without a preset", "train --data {w}/images -o out", 2, "--preset"),
    Case("sweep a preset without a sweep", "train --sweep digits -o out", 2, "has no 'sweep'"),
    Case("sweep and preset", "train --sweep digits-sizes --preset digits -o out", 2, "give one of the two"),
    Case("sweep nowhere", "train --sweep digits-sizes", 2, "--output"),
    Case(
        "sweep with a swept flag of wrong type", "train --sweep {w}/swept.yaml -o out", 2, "sets '--train-batch-size'"
    ),
    Case("sweep to the hub", "train --sweep digits-sizes -o out --push-to-hub a/b", 2, "upload one of them"),
    Case("sweep of an unknown point", "train --sweep digits-sizes -o out --points S-3", 2, "Did you mean 'S-"),
    Case("points without a sweep", f"{TRAIN} --points S-1", 2, "--sweep"),
    Case("train a preset without a model", "train --preset {w}/empty.yaml --data digits -o out", 2, "empty"),
    Case("train on data of another kind", f"{TRAIN} --data {{w}}/file", 2, "is not a folder"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_dit, tiny_latte, text_pipeline):
    """Models, checkpoints, pictures and presets, good and bad."""
    folder = tmp_path_factory.mktemp("world")
    model = write_pipeline(folder / "tiny", tiny_dit())
    _models(folder, model, tiny_dit)
    _checkpoints(folder)
    _images(folder)
    _videos(folder, tiny_latte)
    _texts(folder, text_pipeline)
    presets = {
        "broken": "a: [",
        "typo": "sample: {sede: 1}",
        "command": "smaple: {seed: 1}",
        "value": "finetune: {learning-rate: fast}",
        "empty": "about: nothing",
        "push": "convert: {push-to-hub: alice/dit}",
    }
    config = {**json.loads((model / "transformer" / "config.json").read_text())}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    presets["tiny"] = json.dumps({"model": {"class": "DiTTransformer2DModel", "config": config}})
    swept = {"train": {"data": "digits"}, "sweep": {"train-batch-size": ["4", "x"]}}
    presets["swept"] = json.dumps({**json.loads(presets["tiny"]), **swept})
    for name, text in presets.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "file").write_text("a file")
    (folder / "nothing").mkdir()
    (folder / "binary").mkdir()
    (folder / "binary" / "README.md").write_bytes(b"\xff\xfe\x00")
    return folder


def _models(folder: Path, model: Path, tiny_dit) -> None:
    from skipdit_cli import add_skip_branches
    from skipdit_cli.models import save_branches

    transformer = tiny_dit()
    shutil.copytree(model, folder / "skip")
    save_branches(add_skip_branches(transformer), folder / "skip")
    for name, source in {
        "short": model,
        "config": model,
        "hollow": model,
        "wide": model,
        "cut": folder / "skip",
    }.items():
        shutil.copytree(source, folder / name)
    weights = "diffusion_pytorch_model.safetensors"
    for path in (folder / "short" / "transformer" / weights, folder / "cut" / "skip" / weights):
        path.write_bytes(path.read_bytes()[:-100])
    (folder / "config" / "transformer" / "config.json").write_text("{")
    (folder / "hollow" / "transformer" / weights).unlink()
    tiny_dit(attention_head_dim=16).save_pretrained(folder / "other-width")
    shutil.copy(folder / "other-width" / weights, folder / "wide" / "transformer" / weights)
    _damaged(folder, weights)
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))


def _damaged(folder: Path, weights: str) -> None:
    """Copies of the models, each with one thing wrong."""

    def edit(name: str, source: str, file: str, **changes) -> Path:
        shutil.copytree(folder / source, folder / name)
        path = folder / name / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder / name

    edit("timed", "skip", "skip/config.json", time_embedding="offical")
    edit("heads", "tiny", "transformer/config.json", num_attention_heads="two")
    edit("pipeline", "tiny", "model_index.json", _class_name="StableDiffusionPipeline")
    (edit("weightless", "skip", "skip/config.json") / "skip" / weights).unlink()
    file = edit("partial", "skip", "skip/config.json") / "skip" / weights
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "linears.1.bias"}, file)


class Runs:
    """Unpickled, it would leave a file named "ran" in the folder of the run."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def _checkpoints(folder: Path) -> None:
    torch.save({"model": {"a.weight": torch.ones(3, 3)}}, folder / "other.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({1: torch.ones(2)}, folder / "numbers.pt")
    torch.save({"model": Runs()}, folder / "code.pt")
    (folder / "pickle.pt").write_bytes(pickle.dumps(Runs()))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "truncated.pt").write_bytes((folder / "other.pt").read_bytes()[:-200])


def _images(folder: Path) -> None:
    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 128, np.uint8)).save(path)

    picture(folder / "plain.png")
    for label in range(2):
        for at in range(3):
            picture(folder / "images" / str(label) / f"{at}.png")
            picture(folder / "bad-images" / str(label) / f"{at}.png")
    (folder / "bad-images" / "0" / "broken.png").write_bytes(b"no picture")
    for label in range(12):
        picture(folder / "classes" / f"{label:02d}" / "0.png")
    picture(folder / "listed" / "0.png")
    (folder / "listed" / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 0}\n{"file\n')
    picture(folder / "halves" / "0.png")
    (folder / "halves" / "metadata.jsonl").write_text('{"file_name": "0.png", "label": 0.5}\n')
    for name, text in {"history": "{", "list": "[]"}.items():
        chunk = PngImagePlugin.PngInfo()
        chunk.add_text("skipdit", text)
        Image.new("L", (4, 4)).save(folder / f"{name}.png", pnginfo=chunk)


def _videos(folder: Path, tiny_latte) -> None:
    write_pipeline(folder / "latte", tiny_latte())
    write_pipeline(folder / "free", tiny_latte(num_embeds_ada_norm=None))
    write_pipeline(folder / "odd", tiny_latte(sample_size=9, patch_size=3))
    for name in ("clip.mp4", "bare.mp4"):
        (folder / name).write_bytes(b"a video")
    (folder / "clip.json").write_text('{"frames": 3}')


def _texts(folder: Path, model: Path) -> None:
    def edit(path: Path, **changes) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    for name in ("text", "mute", "narrow"):
        shutil.copytree(model, folder / name)
    edit(folder / "mute" / "model_index.json", tokenizer=[None, None], text_encoder=[None, None])
    edit(folder / "narrow" / "text_encoder" / "config.json", d_model=8)
    (folder / "blank").write_text(" \n\n")


def _tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_table_is_long_enough_and_covers_every_command():
    from typer.main import get_command

    from skipdit_cli.app import app

    assert len(CASES) >= 40 and len({case.name for case in CASES}) == len(CASES)
    first = {case.command.split()[0] for case in CASES}
    assert set(get_command(app).commands) - {"env"} <= first


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(case, world, skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = _tree(world)
    if case.given:
        MACHINE[case.given](monkeypatch)
    ended = skipdit(*shlex.split(case.command.format(w=world)))
    sentences = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert ended.exception is None and ended.code == case.code, ended.stderr
    assert len(sentences) == 1 and case.says.replace("{w}", str(world)) in sentences[0], ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert sentences[0].endswith((".", "?"))
    assert _tree(world) == before
    if not case.keeps:
        assert _tree(tmp_path) == {}
