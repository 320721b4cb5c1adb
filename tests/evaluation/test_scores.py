"""The scores against independent computations in float64, and what a feature network may be."""

import numpy as np
import pytest
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.evaluation import agreement, features, load_features, score
from skipdit_cli.evaluation.digits_network import held_out_accuracy, split, train_network
from skipdit_cli.evaluation.distances import frechet_distance, inception_score, kernel_distance, precision_recall
from skipdit_cli.training.data.moving_digits import scans


class Means(torch.nn.Module):
    """Three features: the mean of each colour; what it declares is set from outside."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean([-1, -2])


class Undefined(torch.nn.Module):
    """Features that are not numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean([-1, -2]) / 0


class Clips(torch.nn.Module):
    """The mean and the change of videos (N, T, C, H, W)."""

    def __init__(self):
        super().__init__()
        self.layout = "NTCHW"
        self.num_frames = 4

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        frames = videos.float().mean([-1, -2, -3])
        return torch.stack([frames.mean(1), (frames[:, 1:] - frames[:, :-1]).abs().mean(1)], 1)


@pytest.fixture(scope="module")
def digits():
    return load_features("digits")


@pytest.fixture
def scripted(tmp_path):
    def save(module):
        torch.jit.script(module).save(tmp_path / "network.pt")
        return tmp_path / "network.pt"

    return save


def test_the_fid_of_torchmetrics_equals_a_frechet_distance_in_float64(digits):
    images = scans()[0]
    samples, real = features(digits, images[:400]), features(digits, images[400:])
    variances, axes = np.linalg.eigh(samples.covariance)
    root = axes * np.sqrt(np.maximum(variances, 0)) @ axes.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ real.covariance @ root), 0)).sum()
    expected = ((samples.mean - real.mean) ** 2).sum() - 2 * shared
    expected += np.trace(samples.covariance) + np.trace(real.covariance)
    assert score(samples, real, digits, ["fid"])["fid"] == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_known_normals():
    diagonal, other = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 16.0])
    expected = 3 * 25 + ((np.sqrt(diagonal) - np.sqrt(other)) ** 2).sum()
    mean = np.full(3, 1000.0)
    assert frechet_distance(mean, np.diag(diagonal), mean - 5, np.diag(other)) == pytest.approx(expected, rel=1e-9)


def test_statistics_do_not_depend_on_the_batches_and_stay_bounded(digits, monkeypatch):
    from skipdit_cli.evaluation import feature_statistics

    monkeypatch.setattr(feature_statistics, "MOST_VECTORS", 100)
    images = scans()[0][:300]
    whole = features(digits, images)
    parts = features(digits, iter(np.array_split(images, 7)))
    vectors = digits(images)
    np.testing.assert_allclose(whole.mean, vectors.features.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(vectors.features.astype(float).T), atol=1e-9)
    np.testing.assert_allclose(parts.covariance, whole.covariance, atol=1e-4)
    assert whole.features.shape == parts.features.shape == (100, 64) and len(whole.logits) == 300
    np.testing.assert_array_equal(parts.keys, whole.keys)


def test_scores_of_equal_and_of_different_sets(digits):
    images, labels = scans()
    real, samples = images[:600], images[600:1100]
    good, noise = score(samples, real, digits), score(255 - samples, real, digits)
    assert good["fid"] < noise["fid"] / 10 and good["kid"] < noise["kid"] / 10 and good["sfid"] < noise["sfid"]
    assert good["precision"] > 0.7 > noise["precision"] and good["recall"] > 0.7 > noise["recall"]
    assert good["inception_score"] > 9 and 0 <= good["kid_std"] and good["inception_score_std"] > 0
    assert (good["num_samples"], good["num_reference"], good["reasons"]) == (500, 600, {})
    same = score(real, real, digits)
    assert abs(same["fid"]) < 1e-6 and same["precision"] == same["recall"] == 1
    assert agreement(features(digits, samples), labels[600:1100]) > 0.97


def test_metrics_against_their_formulas():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)) + 0.3
    kernel = [(x @ y.T / 5 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    off = [(k.sum() - np.trace(k)) / (40 * 39) for k in kernel[:2]]
    assert kernel_distance(a, b, subsets=2)[0] == pytest.approx(sum(off) - 2 * kernel[2].mean(), rel=1e-9)
    chances = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    divergence = (chances * (np.log(chances) - np.log(chances.mean(0)))).sum(1).mean()
    assert inception_score(a, splits=1) == (pytest.approx(np.exp(divergence)), None)
    distances = np.linalg.norm(b[:, None] - b[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, 3]
    within = (np.linalg.norm(a[:, None] - b[None], axis=-1) <= radii).any(1).mean()
    assert precision_recall(a, b)[0] == pytest.approx(within)


def test_the_digits_network_is_trained_and_takes_enlarged_and_coloured_digits(digits):
    assert held_out_accuracy(digits.module) > 0.98 and held_out_accuracy(train_network(epochs=2)) > 0.6
    images = scans()[0][split()[1][:20]]
    large = np.repeat(np.repeat(images, 8, 1), 8, 2)[..., None].repeat(3, -1)
    plain, enlarged = digits(images), digits(large)
    np.testing.assert_allclose(enlarged.features, plain.features, atol=1e-4)
    assert (plain.features.shape, plain.spatial.shape, plain.logits.shape) == ((20, 64), (20, 128), (20, 10))


def test_a_torchscript_file_with_features_alone(scripted):
    network = load_features(scripted(Means()), image_size=4, value_range="-1:1")
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(network(images).features, images.mean((1, 2)) / 127.5 - 1, rtol=1e-5, atol=1e-6)
    scores = score(images[:10], images[10:], network)
    assert scores["fid"] > 0 and scores["sfid"] is scores["inception_score"] is None
    assert scores["reasons"]["inception_score"] == "the network returns no logits"
    assert score(images, None, network)["reasons"]["fid"] == "no reference"


def test_networks_of_other_metrics_are_called_as_these_call_them(scripted):
    class Inception(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False):
            means = images.float().mean([-1, -2])
            return means if return_features else (means / 255 + float(not no_output_bias)).softmax(1)

    class I3D(torch.nn.Module):
        def forward(
            self, videos: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
        ):
            assert resize and return_features
            return (videos.float() / 255 * 2 - 1 if rescale else videos.float()).mean([-1, -2, -3])

    images = np.random.default_rng(0).integers(0, 256, (6, 17, 8, 8, 3)).astype(np.uint8)
    batch = load_features(scripted(Inception()))(images[:, 0])
    means = images[:, 0].mean((1, 2))
    np.testing.assert_allclose(batch.features, means, rtol=1e-5)
    chances = np.exp(means / 255) / np.exp(means / 255).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(batch.logits), chances, rtol=1e-5)
    videos = load_features(scripted(I3D()), layout="NCTHW")(images)
    np.testing.assert_allclose(videos.features, images.mean((1, 2, 3)) / 127.5 - 1, rtol=1e-4, atol=1e-6)


def test_a_network_of_videos_declares_its_layout(scripted):
    network = load_features(scripted(Clips()))
    videos = np.random.default_rng(0).integers(0, 256, (6, 5, 8, 8, 3)).astype(np.uint8)
    assert network(videos).features.shape == (6, 2)
    with pytest.raises(UsageError, match="Got videos of 3 frames, but network.pt takes 4"):
        network(videos[:, :3])
    with pytest.raises(UsageError, match="Got images for a feature network of videos"):
        network(videos[:, 0])


def test_what_is_no_feature_network(tmp_path, digits, scripted):
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("no network")
    for name in ("weights.pt", "text.pt"):
        with pytest.raises(UsageError, match="which is no TorchScript; save the network with torch.jit.save"):
            load_features(tmp_path / name)
    with pytest.raises(UsageError, match="which is no file; expected digits or a TorchScript file"):
        load_features("inception")
    with pytest.raises(UsageError, match="which cannot take uint8"):
        load_features(scripted(torch.nn.Conv2d(3, 4, 3)))
    with pytest.raises(UsageError, match=r"which returns \(2, 3, 64, 64\)|expected features"):
        load_features(scripted(torch.nn.Identity()))
    with pytest.raises(UsageError, match="Got images as float64"):
        digits(np.zeros((2, 8, 8, 3)))
    with pytest.raises(UsageError, match="Got 1 image of the samples, but scores need at least 2"):
        score(scans()[0][:1], scans()[0], digits)
    with pytest.raises(UsageError, match="Got 0 images of the reference"):
        score(scans()[0][:9], iter(()), digits)
    with pytest.raises(UsageError, match="returns NaN or infinity"):
        load_features(scripted(Undefined()))
