"""Pictures that come in: every kind Pillow opens, as training, frames in folders and ``--image`` see them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from skipdit_cli import console, media
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.pixel_dataset import Pixels
from skipdit_cli.training.data.samples import read_samples

RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def _each_says_its_own():
    with console.own_json(False):
        yield


def pixels_of(folder, size=16) -> np.ndarray:
    """(3, H, W), what training makes of the one picture of class 0."""
    pixels = Pixels(read_samples(str(folder), Demand(num_classes=10)), size, 3)[Choice(0)][0]
    return ((pixels + 1) * 127.5).round().numpy()


def grey_png(path, bits: int, row: bytes, width: int, transparent: int | None = None):
    """A PNG of one row, as no Pillow writes it."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0))]
    parts += [] if transparent is None else [chunk(b"tRNS", struct.pack(">H", transparent))]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")])
    )


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, name):
    folder = tmp_path / "data" / "0"
    folder.mkdir(parents=True)
    if name == "a.pgm":
        (folder / name).write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(folder / name)
    assert (pixels_of(tmp_path / "data") == (RAMP >> 8)).all()
    assert (media.read_video(folder, [0])[0] == (RAMP >> 8)[..., None]).all()
    assert (np.asarray(media.read_picture(folder / name)) == (RAMP >> 8)).all()


def test_floats_are_taken_from_black_to_white_and_no_others(tmp_path):
    path = tmp_path / "data" / "0" / "a.tif"
    path.parent.mkdir(parents=True)
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(path)
    assert np.abs(pixels_of(tmp_path / "data") - RAMP / 257).max() <= 0.51
    for low, high in ((0, 255), (-1, 1), (0, np.nan), (0, np.inf)):
        Image.fromarray(np.array([[low, high]], np.float32)).save(path)
        with pytest.raises(UsageError, match=r"floats of .* but only 0 \(black\) to 1 \(white\)"):
            media.read_picture(path)
        with pytest.raises(UsageError, match="1 of 1 images"):
            read_samples(str(tmp_path / "data"), Demand(num_classes=10))


@pytest.mark.parametrize(
    ("values", "said"), [([0, 200], "white cannot be told"), ([0, 2**30], "white cannot"), ([-5, 9000], "-5")]
)
def test_integers_of_32_bits_hold_16_or_are_refused(tmp_path, values, said):
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(np.int32)).save(path)
    assert (np.asarray(media.read_picture(path)) == RAMP >> 8).all()
    Image.fromarray(np.array([values], np.int32)).save(path)
    with pytest.raises(UsageError, match=said):
        media.read_picture(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_exif_rotation_is_applied(tmp_path, orientation, suffix):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :, 0], picture[:, :16, 2] = 255, 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "clip" / f"1.{suffix}"
    path.parent.mkdir()
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    turns = {2: (0, False), 3: (2, True), 4: (2, False), 5: (1, False), 6: (3, True), 7: (3, False), 8: (1, True)}
    turn, plain = turns.get(orientation, (0, True))
    upright = np.rot90(picture if plain else picture[:, ::-1], turn)
    for read in (np.asarray(media.read_picture(path)), media.read_video(path.parent, [0])[0]):
        assert read.shape == upright.shape and np.abs(read.astype(int) - upright).mean() < 12
    facts = media.probe_video(path.parent)
    assert (facts.height, facts.width) == upright.shape[:2]


def test_a_picture_to_start_from_is_upright(tmp_path):
    from skipdit_cli.commands.parsing import read_image

    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").size == (20, 40)


def see_through(mode: str) -> Image.Image:
    """Left half red or grey 60, right half the same and transparent."""
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    alpha = Image.fromarray(np.repeat([[255] * 4 + [0] * 4], 8, 0).astype(np.uint8))
    if mode == "LA":
        return Image.merge("LA", [Image.new("L", (8, 8), 60), alpha])
    picture = Image.merge("RGBA", [*red.split(), alpha])
    return picture.quantize(4) if mode == "P" else picture


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("LA", "png"), ("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("RGBA", "gif"), ("P", "png")],
)
def test_transparent_pixels_are_put_on_white_and_it_is_said_once(tmp_path, capsys, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    see_through(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    for _ in range(2):
        read = np.asarray(media.read_picture(path).convert("RGB")).astype(int)
        assert np.abs(read[:, :4] - ([60] * 3 if mode == "LA" else [200, 0, 0])).max() <= 4
        assert (read[:, 4:] == 255).all()
    assert capsys.readouterr().err.count("are put on white") == 1


def test_the_one_transparent_colour_of_a_file(tmp_path):
    for bits, row, width, transparent, seen in (
        (1, b"\x40", 2, 1, [0, 255]),
        (2, b"\x1b", 4, 1, [0, 255, 170, 255]),
        (4, b"\x3a", 2, 3, [255, 170]),
        (8, b"\x3a\x3b", 2, 0x3A, [255, 0x3B]),
        (16, b"\x03\xe8\xea\x60", 2, 1000, [255, 234]),
    ):
        grey_png(tmp_path / "a.png", bits, row, width, transparent)
        assert np.asarray(media.read_picture(tmp_path / "a.png").convert("L")).tolist() == [seen], bits
    Image.fromarray(np.array([[[9, 9, 9], [9, 9, 8]]], np.uint8)).save(tmp_path / "a.png", transparency=(9, 9, 9))
    assert np.asarray(media.read_picture(tmp_path / "a.png")).tolist() == [[[255] * 3, [9, 9, 8]]]


def test_nothing_to_see_is_refused(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="transparent all over"):
        media.read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_keep_their_colours(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "YCbCr" else "a.tif")
    made = Image.new("RGB", (8, 8), (250, 250, 250) if mode in "1L" else (200, 30, 30)).convert(mode)
    made.save(path)
    read = np.asarray(media.read_picture(path).convert("RGB")).astype(int)
    assert np.abs(read - np.asarray(made.convert("RGB")).astype(int)).max() <= 4


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_taken_and_it_is_said(tmp_path, capsys, suffix):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    first.save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=[second],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    assert (np.asarray(media.read_picture(tmp_path / f"a.{suffix}").convert("RGB")) == (200, 0, 0)).all()
    assert "holds 2 pictures: of it and its like the first one is taken" in capsys.readouterr().err


def test_frames_of_a_gif_are_put_on_white(tmp_path):
    frames = [see_through("RGBA"), ImageOps.mirror(see_through("RGBA"))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2, duration=100)
    read = media.read_video(tmp_path / "a.gif", [0, 1])
    assert (read[0, :, 4:] == 255).all() and (read[1, :, :4] == 255).all() and (read[0, :, :4, 1] < 100).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "ppm", "gif"])
def test_half_a_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        media.read_picture(path)


def test_bytes_that_are_no_picture_are_refused_without_the_address_of_a_buffer():
    with pytest.raises(UsageError) as refusal:
        media.decode_picture(b"no picture", "shard.tar, 0001.png")
    assert "0x" not in str(refusal.value) and "shard.tar, 0001.png" in str(refusal.value)
