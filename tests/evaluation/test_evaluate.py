"""``skipdit evaluate``: samples of every kind against references of every kind, resumed and refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from skipdit_cli import files, media
from skipdit_cli.evaluation import features, load_features, score
from skipdit_cli.training.data.moving_digits import moving_digit, scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 scans as ``skipdit sample`` writes images, with their labels in the records and a prompt in each."""
    root = tmp_path_factory.mktemp("scans")
    images, labels = scans()
    for index in range(60):
        record = {"settings": {"class_labels": str(labels[index]), "prompt": ["a digit"]}}
        media.save_picture(Image.fromarray(images[index]), root / f"{index:04d}.png", record)
    return root


@pytest.fixture
def network_file(tmp_path):
    class Grey(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images.float(), (2, 2)).flatten(1)

    torch.jit.script(Grey()).save(tmp_path / "grey.pt")
    return tmp_path / "grey.pt"


@pytest.fixture
def video_network(tmp_path):
    class Change(torch.nn.Module):
        def forward(self, videos: torch.Tensor) -> torch.Tensor:
            means = videos.mean([1, 3, 4])
            return torch.stack([means.mean(1), (means[:, 1:] - means[:, :-1]).abs().mean(1)], 1)

    torch.jit.script(Change()).save(tmp_path / "change.pt")
    return tmp_path / "change.pt"


def test_digits_against_digits_say_counts_settings_and_doubts(skipdit, folder):
    ran = skipdit("evaluate", folder, "--reference", "digits", "--json")
    assert ran.code == 0, ran.stderr
    result = ran.json
    assert (result["num_samples"], result["num_reference"], result["kind"]) == (60, 1797, "images")
    scores, settings = result["scores"], result["settings"]
    network = load_features("digits")
    samples, real = features(network, scans()[0][:60]), features(network, scans()[0])
    assert scores["fid"] == pytest.approx(score(samples, real, network, ["fid"])["fid"], rel=1e-6)
    assert scores["agreement"] > 0.95 and scores["precision"] == 1 and scores["fvd"] is None
    assert settings["checksum"] == network.checksum and settings["kid_subset_size"] == 60
    assert result["reasons"]["fvd"] == "the network takes images, not videos"
    assert "FID of 60 images is biased" in result["warnings"][0] and "compare by KID" in result["warnings"][0]
    shown = skipdit("evaluate", folder, "--reference", "digits", "--metrics", "kid,agreement").stdout
    assert "classifier agreement" in shown and "FID" not in shown and network.checksum[:12] in shown


def test_splits_of_the_digits_are_samples_and_references(skipdit):
    ran = skipdit("evaluate", "digits:test", "--reference", "digits:train", "--json").json
    assert (ran["num_samples"], ran["num_reference"]) == (359, 1438) and ran["scores"]["agreement"] > 0.9
    assert 0 < ran["scores"]["fid"] < 2


def test_statistics_are_saved_and_stand_for_the_images(skipdit, folder, tmp_path):
    kept = tmp_path / "real.npz"
    assert skipdit("evaluate", folder, "--features", "digits", "--save-statistics", kept).code == 0
    direct = skipdit("evaluate", folder, "--features", "digits", "--reference", folder, "--json").json
    saved = skipdit("evaluate", folder, "--features", "digits", "--reference", kept, "--json").json
    for name, value in direct["scores"].items():
        assert saved["scores"][name] == pytest.approx(value, abs=1e-6), name
    with np.load(kept) as arrays:
        np.savez(tmp_path / "bare.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    bare = skipdit("evaluate", folder, "--features", "digits", "--reference", tmp_path / "bare.npz", "--json").json
    assert bare["scores"]["fid"] == pytest.approx(direct["scores"]["fid"], abs=1e-6)
    assert bare["scores"]["kid"] is bare["scores"]["precision"] is None and bare["num_reference"] is None
    assert "without features" in bare["reasons"]["kid"] and "be sure that the network" in bare["warnings"][-1]


def test_an_array_is_scored_as_the_folder_is(skipdit, folder, tmp_path):
    images, labels = scans()
    np.savez(tmp_path / "adm.npz", images[:60][..., None].repeat(3, -1), labels[:60])
    array = skipdit("evaluate", tmp_path / "adm.npz", "--reference", "digits", "--json", "--batch-size", 7)
    scores = skipdit("evaluate", folder, "--reference", "digits", "--json").json["scores"]
    assert array.json["scores"] == pytest.approx(scores, abs=1e-4)
    few = skipdit("evaluate", tmp_path / "adm.npz", "--reference", "digits", "--json", "--max-samples", 20)
    assert few.json["num_samples"] == 20


def test_an_interrupted_run_goes_on(skipdit, folder, monkeypatch):
    from skipdit_cli.evaluation import feature_network

    expected = skipdit("evaluate", folder, "--reference", "digits", "--json").json["scores"]
    call, sizes = feature_network.FeatureNetwork.__call__, []

    def interrupted(self, images):
        sizes.append(len(images))
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return call(self, images)

    monkeypatch.setattr(feature_network.FeatureNetwork, "__call__", interrupted)
    arguments = ("evaluate", folder, "--reference", "digits", "--json", "--batch-size", 20)
    assert skipdit(*arguments).code == 130 and sizes[1:] == [20, 20, 20], "the reference is kept"
    assert skipdit(*arguments).json["scores"] == pytest.approx(expected, abs=1e-4)
    assert sizes[4:] == [2, 20], "two batches of samples are kept"


def test_class_folders_and_a_network_of_ones_own(skipdit, tmp_path, network_file):
    for index in range(12):
        place = tmp_path / "real" / str(index % 2) / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6 + index, 6, 3), 20 * index, np.uint8)).save(place)
    arguments = ("evaluate", tmp_path / "real", "--features", network_file, "--reference", tmp_path / "real")
    refused = skipdit(*arguments)
    assert refused.code == 2 and "give --feature-size to resize them" in refused.stderr
    ran = skipdit(*arguments, "--feature-size", 4, "--json").json
    assert ran["scores"]["fid"] == pytest.approx(0, abs=1e-6) and ran["scores"]["inception_score"] is None
    assert ran["settings"]["resize_filter"] == "bicubic, antialiased" and ran["num_samples"] == 12


def test_videos_have_an_fvd_and_measures_of_their_frames(skipdit, tmp_path, video_network):
    videos = np.stack([moving_digit(index)[:6] for index in range(12)])[..., None].repeat(3, -1)
    np.savez(tmp_path / "videos.npz", videos)
    flags = ("--features", video_network, "--feature-layout", "NCTHW", "--feature-range", "0:1")
    ran = skipdit("evaluate", tmp_path / "videos.npz", *flags, "--reference", tmp_path / "videos.npz", "--json")
    assert ran.code == 0, ran.stderr
    scores = ran.json["scores"]
    assert scores["fvd"] == pytest.approx(0, abs=1e-9) and scores["fid"] is None
    change = np.abs(np.diff(videos.astype(float), axis=1)).mean()
    assert scores["frame_difference"] == pytest.approx(change)
    assert scores["temporal_flickering"] == pytest.approx(1 - change / 255)
    frames = skipdit("evaluate", tmp_path / "videos.npz", "--reference", "digits", "--json").json
    assert 0 < frames["scores"]["subject_consistency"] < 1 and frames["num_samples"] == 12
    assert "RAFT" in frames["reasons"]["dynamic_degree"]
    still = skipdit("evaluate", tmp_path / "videos.npz", *flags, "--reference", "digits")
    assert still.code == 2 and "holds images, but --features change.pt is a network of videos" in still.stderr


def test_a_folder_of_videos_leaves_out_what_lies_beside_them(skipdit, tmp_path, video_network):
    for index in range(2):
        frames = moving_digit(index)[: 5 + index][..., None].repeat(3, -1)
        media.save_video(frames, tmp_path / f"{index}.mp4", 8, {})
        Image.fromarray(frames[0]).save(tmp_path / f"{index}.png")
    result = skipdit("evaluate", tmp_path, "--features", "digits", "--json").json
    assert (result["kind"], result["num_samples"]) == ("videos", 2) and result["scores"]["temporal_flickering"] < 1
    flags = ("--features", video_network, "--feature-layout", "NCTHW", "--feature-range", "0:1")
    several = skipdit("evaluate", tmp_path, *flags, "--feature-frames", 4, "--reference", tmp_path, "--json").json
    assert several["scores"]["fvd"] == pytest.approx(0, abs=1e-9) and several["settings"]["num_frames"] == 4
    long = skipdit("evaluate", tmp_path, *flags, "--feature-frames", 6)
    assert long.code == 2 and "Got videos of 5 and 6 frames" in long.stderr


def test_the_grid_of_a_sample_folder_is_no_sample(skipdit, tmp_path):
    made = tmp_path / "made"
    images, labels = scans()
    with files.fill_folder(made, files.SAMPLE) as folder:
        for index in range(3):
            record = {"settings": {"class_labels": str(labels[index])}}
            media.save_picture(Image.fromarray(images[index]), folder / f"{index:04d}.png", record)
        media.save_picture(Image.fromarray(np.concatenate(list(images[:3]), 1)), folder / "grid.png", {})
    result = skipdit("evaluate", made, "--reference", "digits", "--metrics", "agreement,kid", "--json").json
    assert result["num_samples"] == 3 and result["scores"]["agreement"] == 1


def test_the_clip_score_of_prompts_and_of_captions(skipdit, folder, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    from tests.support.pipeline_parts import tiny_tokenizer

    tokenizer = tiny_tokenizer(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**small, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(tmp_path / "clip")
    flags = ("--features", "digits", "--metrics", "clip_score", "--clip", tmp_path / "clip", "--max-samples", 5)
    by_prompt = skipdit("evaluate", folder, *flags, "--json")
    assert by_prompt.code == 0, by_prompt.stderr
    assert 0 <= by_prompt.json["scores"]["clip_score"] <= 100 and by_prompt.json["reasons"] == {}
    lines = [json.dumps({"file_name": str(folder / f"{at:04d}.png"), "text": "a digit"}) for at in range(5)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    by_file = skipdit("evaluate", folder, *flags, "--captions", tmp_path / "metadata.jsonl", "--json")
    assert by_file.json["scores"] == by_prompt.json["scores"]


def test_statistics_of_another_network_are_refused(skipdit, folder, tmp_path, network_file):
    skipdit("evaluate", folder, "--features", "digits", "--save-statistics", tmp_path / "a.npz")
    other = skipdit("evaluate", folder, "--features", network_file, "--reference", tmp_path / "a.npz")
    assert other.code == 2 and "give the same network and settings" in other.stderr
    np.savez(tmp_path / "c.npz", mu=np.zeros(64), sigma=np.eye(64), settings=np.array("[1]"))
    damaged = skipdit("evaluate", folder, "--features", "digits", "--reference", tmp_path / "c.npz")
    assert damaged.code == 2 and "c.npz, which cannot be read" in damaged.stderr
    np.savez(tmp_path / "b.npz", mu=np.zeros(3), sigma=np.eye(3))
    for sigma in (np.eye(64) - 2, np.triu(np.ones((64, 64)))):
        np.savez(tmp_path / "c.npz", mu=np.zeros(64), sigma=sigma)
        ran = skipdit("evaluate", folder, "--features", "digits", "--reference", tmp_path / "c.npz")
        assert ran.code == 2 and "sigma is no covariance" in ran.stderr
    small = skipdit("evaluate", folder, "--features", "digits", "--reference", tmp_path / "b.npz")
    assert small.code == 2 and "features of size 3, but the feature network returns 64" in small.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", np.zeros(60, np.float32)),
        ("features", np.zeros((60, 3), np.float32)),
        ("features", np.full((60, 64), np.nan, np.float32)),
        ("keys", np.zeros(3, np.uint64)),
        ("logits", np.zeros(3, np.float32)),
        ("mu", np.full(64, np.nan)),
        ("counts", np.array([-1, 0])),
    ],
)
def test_damaged_statistics_are_refused(skipdit, folder, tmp_path, name, value):
    skipdit("evaluate", folder, "--features", "digits", "--save-statistics", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{**np.load(tmp_path / "a.npz"), name: value})
    ran = skipdit("evaluate", folder, "--features", "digits", "--reference", tmp_path / "b.npz")
    assert ran.code == 2 and "b.npz" in ran.stderr and ran.stderr.count("Error: ") == 1


def test_a_network_whose_output_changes_size_or_is_complex_is_refused(skipdit, folder, tmp_path):
    class Growing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)[:, : len(images)]

    class Complex(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.complex(images.float(), images.float()).flatten(1)

    for network, problem in ((Growing(), "features of 40 and of 20 values"), (Complex(), "complex numbers")):
        torch.jit.script(network).save(tmp_path / "network.pt")
        flags = ("--features", tmp_path / "network.pt", "--reference", folder, "--batch-size", 40)
        ran = skipdit("evaluate", folder, *flags)
        assert ran.code == 2 and problem in ran.stderr
