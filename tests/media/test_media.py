"""Pictures in and out."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from skipdit_cli import media
from skipdit_cli.errors import SkipditError, UsageError
from tests.support.measurements import samples_in


def test_pixels_are_rounded_as_the_dit_repository_rounds():
    x = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0]).view(1, 1, 1, 5)
    assert media.to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255]
    assert media.to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_a_grid_keeps_every_pixel():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    drawn = np.asarray(media.grid(images, columns=3, scale=2))
    assert drawn.shape == (2 * 16 + 1, 3 * 16 + 2, 3)
    assert (drawn[17:33:2, 17:33:2] == images[4]).all()


def test_metadata_survives_any_script(tmp_path):
    path, made = tmp_path / "a.png", {"prompt": "数字 «drei»", "seed": 3}
    media.save_png(Image.new("RGB", (4, 4)), path, made)
    assert media.read_metadata(path) == made


def test_pictures_that_are_none(tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (4, 4)).save(other)
    with pytest.raises(UsageError, match="does not say how it was made"):
        media.read_metadata(other)
    with pytest.raises(UsageError, match="not a file"):
        media.read_metadata(tmp_path / "missing.png")
    other.write_bytes(other.read_bytes()[:40])
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        media.read_metadata(other)


def test_videos_side_by_side_stay_even_and_keep_every_pixel():
    videos = np.random.default_rng(0).integers(0, 255, (3, 4, 6, 10, 3), dtype=np.uint8)
    together = media.video_grid(videos, scale=2)
    assert together.shape == (4, 12, 3 * 20 + 4, 3)
    assert (together[:, ::2, 44::2] == videos[2]).all()
    sheet = np.asarray(media.contact_sheet(videos))
    assert (sheet[7:13, 11:21] == videos[1, 1]).all()


def test_a_video_keeps_its_size(tmp_path):
    """imageio's default would make 128x96 of it."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 90, 122, 3), dtype=np.uint8)
    path = tmp_path / "a.mp4"
    media.save_video(frames, path, 29.97, {"seed": 3})
    assert imageio.imread(path, plugin="FFMPEG").shape == frames.shape
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == pytest.approx(29.97, abs=0.01)
    assert media.read_metadata(path) == {"seed": 3}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_an_mp4_keeps_its_sound_and_a_gif_has_none(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (10, 16, 16, 3), dtype=np.uint8)
    tone = np.sin(2 * np.pi * 500 * np.arange(16000) / 16000).astype(np.float32)
    sound = media.Sound(np.stack([tone, 3 * tone]), 16000)  # the second is cut to what a file can hold
    for name in ("a.mp4", "again.mp4", "a.gif"):
        media.save_video(frames, tmp_path / name, 10, {}, sound)
    heard = samples_in(tmp_path / "a.mp4")
    assert len(heard) == pytest.approx(16000, abs=1024)
    assert abs(np.fft.rfft(heard[:16000])).argmax() == 500 and heard.std() == pytest.approx(0.8, abs=0.05)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    assert len(media.read_video(tmp_path / "a.mp4", range(10))) == len(imageio.imread(tmp_path / "a.gif")) == 10


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    odd = np.zeros((3, 8, 9, 3), np.uint8)
    with pytest.raises(UsageError, match="9x8"):
        media.save_video(odd, tmp_path / "a.mp4", 8, {})
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(SkipditError, match="could not be encoded"):
        media.save_video(odd[:, :, :8], tmp_path / "a.mp4", 8, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count, columns", [(2, 2), (3, 3), (5, 3), (8, 4), (10, 5), (16, 4)])
def test_a_grid_has_no_gaps_where_one_more_column_fills_it(count, columns):
    assert media.grid(np.zeros((count, 2, 2, 3), np.uint8), gap=1).size[0] == 3 * columns - 1
