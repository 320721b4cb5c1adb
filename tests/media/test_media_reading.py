"""Videos in: the right frames with the same pixels from both decoders, and every bad file refused in a sentence."""

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from skipdit_cli import media
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.media import ffmpeg, packets

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
MACHINES = ("decord", "imageio-ffmpeg")
FRAMES = 40
SCATTERED = [31, 0, 17, 39, 17, 18, 20, 9]
H264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p -bf 3 -g 10"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 300k -g 10"
VARIABLE = "\"setpts='if(lt(N,20),N,20+(N-20)*3)'/25/TB\""


def run_ffmpeg(command: str) -> bytes:
    done = subprocess.run([FFMPEG, "-v", "error", "-y", *shlex.split(command)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def pattern(frames: int = FRAMES) -> str:
    return f"-f lavfi -i testsrc2=size=64x48:rate=25:duration={frames / 25},noise=alls=20:allf=t"


def all_frames(*clips: tuple[Path, tuple[int, int]]) -> list[np.ndarray]:
    """Every frame of each (path, (width, height)), decoded from the first on without a seek."""
    pixels = "-fps_mode passthrough -vf scale=flags=bicubic,format=rgb24 -f rawvideo"
    inputs = [f"-i {path}" for path, _ in clips]
    run_ffmpeg(" ".join([*inputs, *(f"-map {at}:v:0 {pixels} {path}.rgb" for at, (path, _) in enumerate(clips))]))
    return [np.fromfile(f"{path}.rgb", np.uint8).reshape(-1, height, width, 3) for path, (width, height) in clips]


@dataclass(frozen=True)
class Clip:
    """How ffmpeg makes a clip, what it is, and whether decord may read it."""

    arguments: str
    decord: bool
    copied: tuple[str, str] = ()  # options before and after the input of a second pass, which copies the packets
    size: tuple[int, int] = (64, 48)
    fps: float = 25.0
    frames: int = FRAMES


CLIPS = {
    "b_frames.mp4": Clip(H264, True),
    "long_gop.mkv": Clip(f"{H264} -g 250", True),
    "starts_late.mp4": Clip(H264, True, ("", "-output_ts_offset 5.3")),
    "starts_late.mkv": Clip(H264, True, ("", "-output_ts_offset 5.3")),
    "cut.mp4": Clip(f"{H264} -g 250", False, ("-ss 0.6", ""), frames=25),  # an edit list hides the first 15
    "variable.mkv": Clip(f"{H264} -vf {VARIABLE} -fps_mode vfr", True, fps=12.82),
    "open_gop.mp4": Clip(f"{H264} -x264-params open-gop=1:scenecut=0", False),
    "intra_refresh.mp4": Clip(f"{H264} -x264-params intra-refresh=1", False),
    "hevc.mp4": Clip("-c:v libx265 -x265-params keyint=10:open-gop=0:log-level=none -pix_fmt yuv420p", True),
    "hevc_open_gop.mp4": Clip("-c:v libx265 -x265-params keyint=10:log-level=none -pix_fmt yuv420p", False),
    "vp9.webm": Clip(f"{VP9} -pix_fmt yuv420p", True),
    "odd_444.mp4": Clip(f"{H264} -vf scale=63:47 -pix_fmt yuv444p", True, size=(63, 47)),
    "odd_420.webm": Clip(f"{VP9} -vf scale=63:47 -pix_fmt yuv420p", False, size=(63, 47)),
    "full_range.mp4": Clip(f"{H264} -vf scale=out_range=full -color_range pc", True),
    "bt709.mp4": Clip(f"{H264} -vf scale=out_color_matrix=bt709 -colorspace bt709", True),
    "ten_bit.mp4": Clip(f"{H264} -pix_fmt yuv420p10le", False),
    "turned.mp4": Clip(H264, False, ("-display_rotation 90", ""), size=(48, 64)),
    "mirrored.mp4": Clip(H264, False, ("-display_rotation 90 -display_hflip", ""), size=(48, 64)),
    "narrow.mp4": Clip(
        f"{H264} -vf scale=48:48,setsar=1", False, size=(48, 48)
    ),  # decord miscounts the bytes of a row
    "untimed.avi": Clip(H264, False),
    "mpeg4.avi": Clip("-c:v mpeg4 -q:v 3", False),
    "mjpeg.mp4": Clip("-c:v mjpeg -q:v 3", False),
    "mpeg2.mpg": Clip("-c:v mpeg2video -q:v 3 -bf 2", False),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The path of each of ``CLIPS`` and all its frames; ffmpeg makes them together, which is quicker."""
    folder = tmp_path_factory.mktemp("clips")
    first = {name: folder / (f"first_{name}" if clip.copied else name) for name, clip in CLIPS.items()}
    run_ffmpeg(" ".join([pattern(), *(f"-map 0 {clip.arguments} {first[name]}" for name, clip in CLIPS.items())]))
    for name, clip in CLIPS.items():
        if clip.copied:
            run_ffmpeg(f"{clip.copied[0]} -i {first[name]} -c copy {clip.copied[1]} {folder / name}")
    paths = [folder / name for name in CLIPS]
    return dict(zip(CLIPS, zip(paths, all_frames(*zip(paths, (clip.size for clip in CLIPS.values()))))))


@pytest.fixture(params=MACHINES)
def decoder(request, monkeypatch):
    """A machine with or without decord: its decoder, and after it the decoders that ran."""
    decode, installed = ffmpeg.decode, request.param == "decord" and find_spec("decord") is not None
    ran = ["decord" if installed else "ffmpeg"]
    monkeypatch.setattr(ffmpeg, "decode", lambda *a, **k: ran.append("ffmpeg") or decode(*a, **k))
    if installed:
        import decord

        reader = decord.VideoReader
        monkeypatch.setattr(decord, "VideoReader", lambda *a, **k: ran.append("decord") or reader(*a, **k))
    else:
        monkeypatch.setitem(sys.modules, "decord", None)
    return ran


BOTH = [(name, machine) for name, clip in CLIPS.items() for machine in MACHINES[: 1 + clip.decord]]


@pytest.mark.parametrize(("name", "decoder"), BOTH, indirect=["decoder"])
def test_both_decoders_give_the_same_frames(name, clips, decoder):
    path, expected = clips[name]
    clip = CLIPS[name]
    assert len(expected) == clip.frames
    facts = media.probe_video(path)
    assert (facts.frames, facts.width, facts.height) == (clip.frames, *clip.size)
    assert facts.fps == pytest.approx(clip.fps, rel=0.02)
    indices = [index % clip.frames for index in SCATTERED]
    frames = media.read_video(path, indices)
    assert frames.dtype == np.uint8 and frames.shape == (len(indices), *clip.size[::-1], 3)
    assert (frames == expected[indices]).all()
    assert ("ffmpeg" not in decoder) == (decoder[0] == "decord" and clip.decord)


def test_frames_are_those_that_were_written(tmp_path, decoder):
    frames = np.repeat(np.arange(10, 240, 10, dtype=np.uint8), 64 * 64 * 3).reshape(-1, 64, 64, 3)
    media.save_video(frames, tmp_path / "a.mp4", 8, {})
    assert media.probe_video(tmp_path / "a.mp4") == media.VideoFacts(len(frames), 64, 64, 8.0)
    read = media.read_video(tmp_path / "a.mp4", range(len(frames)))
    assert np.abs(read.astype(int) - frames).max() <= 2
    media.save_video(frames, tmp_path / "a.gif", 10, {})
    assert media.probe_video(tmp_path / "a.gif") == media.VideoFacts(len(frames), 64, 64, 10.0)
    assert (media.read_video(tmp_path / "a.gif", [7, 2, 22]) == frames[[7, 2, 22]]).all()
    assert media.read_video(tmp_path / "a.gif", []).shape == (0, 64, 64, 3)


@pytest.fixture(scope="module")
def ten_groups(tmp_path_factory):
    """A clip of 200 frames with a key frame every 20, all its frames, and where in the file each packet begins."""
    path = tmp_path_factory.mktemp("groups") / "groups.mp4"
    run_ffmpeg(f"{pattern(200)} {H264} -g 20 -x264-params scenecut=0 {path}")
    table = run_ffmpeg(f"-i {path} -c copy -f framecrc -").decode().splitlines()
    sizes = [int(line.split(",")[4]) for line in table if not line.startswith("#")]
    return path, all_frames((path, (64, 48)))[0], path.read_bytes().index(b"mdat") + 4 + np.cumsum([0, *sizes])


@pytest.mark.skipif(find_spec("decord") is None, reason="no wheel for this machine")
@pytest.mark.parametrize("decoder", ["decord"], indirect=True)
def test_decord_does_not_decode_what_comes_before(ten_groups, decoder, tmp_path):
    """Frames 20 to 139 are overwritten behind the back of the index: whoever decoded them would fail. (To open a file
    is to decode its first frames.)"""
    intact, expected, starts = ten_groups
    path = Path(shutil.copy(intact, tmp_path / "ruined.mp4"))
    assert media.probe_video(path).frames == 200
    status, data = path.stat(), bytearray(path.read_bytes())
    data[starts[20] : starts[140]] = random.Random(0).randbytes(starts[140] - starts[20])
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (media.read_video(path, [145, 150, 185]) == expected[[145, 150, 185]]).all()
    assert set(decoder) == {"decord"}
    with pytest.raises(UsageError, match="frame 105 cannot be decoded"):
        media.read_video(path, [105])
    assert decoder[-3:] == ["decord", "ffmpeg", "ffmpeg"]  # the last without a seek


def test_ffmpeg_decodes_only_what_is_needed(ten_groups, monkeypatch):
    path, expected, _ = ten_groups
    monkeypatch.setitem(sys.modules, "decord", None)
    packets.read_packets(path)
    decoded, run = [], subprocess.run

    def verbose(command, **options):
        done = run([part.replace("level+info", "level+verbose") for part in command], **options)
        decoded.append(int(re.search(rb"(\d+) frames decoded", done.stderr)[1]))
        return done

    monkeypatch.setattr(subprocess, "run", verbose)
    indices = [25, 30, 95, 175]
    assert (media.read_video(path, indices) == expected[indices]).all()
    assert len(decoded) == 3 and 11 + 16 + 16 <= sum(decoded) < 11 + 16 + 16 + 15


def test_where_seeking_fails_frames_are_read_from_the_start(ten_groups, monkeypatch):
    path, expected, _ = ten_groups
    monkeypatch.setitem(sys.modules, "decord", None)
    decode, seeks = ffmpeg.decode, []

    def late(path, select, count, seek=None):
        seeks.append(seek)
        return decode(path, select, count, None if seek is None else seek + 2)

    monkeypatch.setattr(ffmpeg, "decode", late)
    assert (media.read_video(path, [90]) == expected[90]).all()
    assert seeks == [pytest.approx(80.5 / 25), None]


@pytest.mark.parametrize("decoder", MACHINES, indirect=True)
@pytest.mark.parametrize(
    ("name", "how", "again", "size"),
    [
        ("wide.mp4", f"{H264} -vf setsar=4/3", None, (85, 48)),
        ("tall.mkv", f"{H264} -vf setsar=1/2", None, (32, 48)),
        ("wide.webm", f"{VP9} -vf setsar=4/3 -pix_fmt yuv420p", None, (85, 48)),
        ("wide.avi", "-c:v mpeg4 -vf setsar=4/3", None, (85, 48)),
        ("wide.mpg", "-c:v mpeg2video -vf setdar=16/9", None, (85, 48)),
        ("container.mp4", f"{H264} -vf setsar=4/3", ("", "-aspect 2:1"), (96, 48)),  # its word is the last
        ("turned.mp4", f"{H264} -vf setsar=4/3", ("-display_rotation 90", ""), (48, 85)),
        ("flipped.mp4", f"{H264} -vf setsar=4/3", ("-display_rotation 180", ""), (85, 48)),
    ],
)
def test_pixels_that_are_not_square_are_shown_as_players_do(name, how, again, size, tmp_path, decoder):
    path = tmp_path / name
    first = tmp_path / f"first{path.suffix}" if again else path
    run_ffmpeg(f"{pattern(4)} {how} {first}")
    if again:
        run_ffmpeg(f"{again[0]} -i {first} -c copy {again[1]} {path}")
    facts, frames = media.probe_video(path), media.read_video(path, [0, 3])
    assert (facts.width, facts.height) == size and frames.shape == (2, *size[::-1], 3)
    stored = (64, 48) if size[0] > size[1] or name == "tall.mkv" else (48, 64)
    for frame, decoded in zip(frames, all_frames((path, stored))[0][[0, 3]]):
        assert (frame == np.asarray(Image.fromarray(decoded).resize(size, Image.Resampling.BICUBIC))).all()


def test_an_absurd_pixel_is_refused(tmp_path):
    run_ffmpeg(f"{pattern(2)} {H264} -vf setsar=40/1 {tmp_path / 'a.mp4'}")
    with pytest.raises(UsageError, match="its pixels are 40 times as wide as high"):
        media.probe_video(tmp_path / "a.mp4")


def test_when_frames_are_shown(clips, tmp_path):
    even = np.arange(FRAMES) / 25
    for name in ("b_frames.mp4", "starts_late.mkv", "vp9.webm", "untimed.avi"):
        assert media.frame_times(clips[name][0]) == pytest.approx(even, abs=1e-3), name
    assert media.frame_times(clips["variable.mkv"][0])[[19, 20, 21]] == pytest.approx([19 / 25, 20 / 25, 23 / 25])
    media.save_video(np.stack([np.full((8, 8, 3), 9 * n, np.uint8) for n in range(5)]), tmp_path / "a.gif", 10, {})
    assert media.frame_times(tmp_path / "a.gif") == pytest.approx(np.arange(5) / 10)
    folder_of_frames(tmp_path / "clip", [(4, 4)] * 2)
    with pytest.raises(UsageError, match="a folder of frames, which does not tell when each is shown"):
        media.frame_times(tmp_path / "clip")


class Windows(Dataset):
    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return media.read_video(self.path, [index + 30, 39 - index])


def test_workers_read_after_their_parent_did(clips, decoder):
    path, expected = clips["b_frames.mp4"]
    with ThreadPoolExecutor(4) as pool:
        assert {facts.frames for facts in pool.map(media.probe_video, [path] * 4)} == {FRAMES}
    loader = DataLoader(Windows(path), None, num_workers=2, timeout=60, multiprocessing_context="fork")
    read = [window.numpy() for window in loader]
    assert len(read) == 4
    assert all((window == expected[[index + 30, 39 - index]]).all() for index, window in enumerate(read))


def folder_of_frames(folder: Path, sizes: list[tuple[int, int]], suffix: str = ".png") -> np.ndarray:
    folder.mkdir()
    frames = [np.random.default_rng(n).integers(0, 255, (h, w, 3), np.uint8) for n, (w, h) in enumerate(sizes)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number}{suffix}")
    return frames


def test_a_folder_of_frames_is_a_video(tmp_path):
    frames = np.stack(folder_of_frames(tmp_path / "clip", [(20, 10)] * 12))
    (tmp_path / "clip" / ".frame_3.png").write_bytes(b"hidden")
    (tmp_path / "clip" / "notes.txt").write_text("no picture")
    assert media.probe_video(tmp_path / "clip") == media.VideoFacts(12, 20, 10, None)
    assert (media.read_video(tmp_path / "clip", [11, 2, 10]) == frames[[11, 2, 10]]).all()
    Image.fromarray(frames[0, :, :, 0]).save(tmp_path / "clip" / "frame_12.png")  # gray
    assert (media.read_video(tmp_path / "clip", [12]) == frames[0, :, :, :1]).all()
    assert media.is_frame_folder(tmp_path / "clip")
    assert not media.is_frame_folder(tmp_path) and not media.is_frame_folder(tmp_path / "clip" / "frame_0.png")


def ruined(data: bytes, first: float, last: float, how=None) -> bytes:
    """A share of an mp4's media data overwritten, with random bytes or what ``how`` gives."""
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    first, last = begin + round(first * (end - begin)), begin + round(last * (end - begin))
    return data[:first] + (how or random.Random(0).randbytes)(last - first) + data[last:]


def bad_file(kind: str, folder: Path, clips) -> Path:
    path = folder / "bad.mp4"
    good = clips["b_frames.mp4"][0]
    if kind == "missing":
        return path
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a video\n" * 40)
    elif kind == "random bytes":
        path.write_bytes(random.Random(0).randbytes(4000))
    elif kind == "picture":
        Image.new("RGB", (64, 48)).save(path, format="PNG")
    elif kind == "playlist":
        path.write_text(f"ffconcat version 1.0\nfile '{good.name}'\n")
    elif kind == "audio only":
        run_ffmpeg(f"-f lavfi -i sine=d=0.2 -c:a aac {path}")
    elif kind == "no frames":
        run_ffmpeg(f"{pattern()} -frames:v 0 {H264} {path}")
    elif kind == "cut off, index last":
        path.write_bytes(good.read_bytes()[:9000])
    elif kind == "cut off, index first":
        run_ffmpeg(f"-i {good} -c copy -movflags faststart {path}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif kind == "cut off mkv":
        path = folder / "bad.mkv"
        path.write_bytes(clips["long_gop.mkv"][0].read_bytes()[:9000])
    elif kind == "random in the middle":
        path.write_bytes(ruined(good.read_bytes(), 0.4, 0.6))
    elif kind in ("nothing decodes", "last frame does not decode"):
        first = 0 if kind == "nothing decodes" else 0.96
        path.write_bytes(ruined(clips["mjpeg.mp4"][0].read_bytes(), first, 1, bytes))
    elif kind == "broken gif":
        path = folder / "bad.gif"
        media.save_video(np.stack([np.full((32, 32, 3), 9 * n, np.uint8) for n in range(9)]), path, 8, {})
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "folder without pictures":
        path = folder / "clip"
        path.mkdir()
    elif kind == "folder of two sizes":
        path = folder / "clip"
        folder_of_frames(path, [(20, 10)] * 3 + [(10, 20)])
    elif kind in ("folder with a broken picture", "folder with a cut off picture"):
        path = folder / "clip"
        folder_of_frames(path, [(20, 10)] * 4)
        last = path / "frame_3.png"
        last.write_bytes(last.read_bytes()[:400] if "cut" in kind else b"no picture")
    else:
        raise AssertionError(kind)
    return path


BAD = {
    "missing": "not there",
    "empty": "it is empty",
    "text": "no video",
    "random bytes": "no video",
    "picture": "of another kind",
    "playlist": "of another kind",
    "audio only": "no video stream",
    "no frames": "no video stream",
    "cut off, index last": "not whole",
    "cut off, index first": "damaged or cut off",
    "cut off mkv": "damaged or cut off",
    "random in the middle": "damaged or cut off",
    "nothing decodes": "damaged or cut off",
    "last frame does not decode": "frame 39 cannot be decoded",
    "broken gif": "read as a video",
    "folder without pictures": "without pictures",
    "folder of two sizes": "frame_0.png has 20x10 and frame_3.png 10x20",
    "folder with a broken picture": "frame_3.png, which cannot be read as a picture",
    "folder with a cut off picture": "frame_3.png, which cannot be read as a picture",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(kind, clips, tmp_path, capfd):
    path = bad_file(kind, tmp_path, clips)
    with pytest.raises(UsageError, match=re.escape(BAD[kind])) as refused:
        media.probe_video(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["b_frames.mp4", "untimed.avi", "still.gif", "folder"])
def test_frames_out_of_range_are_refused(name, clips, tmp_path):
    if name == "folder":
        path, frames = tmp_path / "clip", 3
        folder_of_frames(path, [(4, 4)] * frames)
    elif name == "still.gif":
        path, frames = tmp_path / name, 1
        Image.new("RGB", (4, 4)).save(path)
    else:
        path, frames = clips[name][0], FRAMES
    for outside in (-1, frames):
        with pytest.raises(UsageError, match=f"Got frame {outside} of .*, but its frames are 0 to {frames - 1}"):
            media.read_video(path, [0, outside])


def test_one_frame_is_a_video(tmp_path, decoder):
    path = tmp_path / "one.mp4"
    run_ffmpeg(f"{pattern(1)} {H264} {path}")
    assert media.probe_video(path) == media.VideoFacts(1, 64, 48, 25.0)
    assert (media.read_video(path, [0, 0]) == all_frames((path, (64, 48)))[0][[0, 0]]).all()


def test_a_changed_file_is_looked_at_again(clips, tmp_path):
    path = Path(shutil.copy(clips["b_frames.mp4"][0], tmp_path / "a.mp4"))
    assert media.probe_video(path).frames == FRAMES
    shutil.copy(clips["cut.mp4"][0], path)
    assert media.probe_video(path).frames == CLIPS["cut.mp4"].frames


def test_a_tag_that_is_not_utf8_does_not_matter(tmp_path):
    path = tmp_path / "a.avi"
    run_ffmpeg(f"{pattern(2)} -metadata title=XXXX {path}")
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"\xe9\xff\xfeX"))
    assert media.probe_video(path).frames == 2


@pytest.mark.parametrize(
    ("program", "exception", "why"),
    [
        ("exec sleep 60", UsageError, "cannot be read as a video: ffmpeg was not done with it after 0.2 seconds"),
        ("echo Unrecognized option fps_mode >&2; exit 1", SkipditError, "too old"),
        (None, SkipditError, "cannot be started"),
    ],
)
def test_an_ffmpeg_that_does_not_do(program, exception, why, tmp_path, monkeypatch):
    stand_in, path = tmp_path / "ffmpeg", tmp_path / "a.mp4"
    path.write_bytes(b"not looked at")
    if program:
        stand_in.write_text(f"#!/bin/sh\n{program}\n")
        stand_in.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(stand_in))
    monkeypatch.setattr(ffmpeg, "TIME_LIMIT", 0.2 if exception is UsageError else 20)
    with pytest.raises(exception, match=why):
        media.probe_video(path)
