"""Bombs, absurd sizes and headers of a billion frames, which are refused before their memory is taken; and what the
fuzz suite found, at its smallest."""

import io
import json
import struct
import zipfile
import zlib
from functools import reduce

import numpy as np
import pytest

from skipdit_cli.training.sources.parquet_pages import unfolded
from tests.strangers.mutations import LAUGHS, chunk
from tests.strangers.readers import READERS
from tests.strangers.sandbox import spoiling

BILLION = 10**9
SIDE = 60_000


def png(width: int, height: int, bits: int = 8, kind: int = 6) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def jpeg(content: bytes) -> bytes:
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", SIDE, SIDE) + content[at + 9 :]


def bmp(content: bytes) -> bytes:
    return content[:18] + struct.pack("<ii", SIDE, SIDE) + content[26:]


def gif(content: bytes) -> bytes:
    return content[:6] + struct.pack("<HH", SIDE, SIDE) + content[10:]


def packed(name: str, size: int) -> bytes:
    """Return a zip with a file of so many zeros, whose compressed content is one piece over and over."""
    piece, press = 1 << 24, zlib.compressobj(9, zlib.DEFLATED, -15)
    data = press.compress(b"\0" * piece) + press.flush(zlib.Z_FULL_FLUSH)
    data = data * (size // piece) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    size = size // piece * piece
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
    local, central = b"PK\3\4" + fields + name.encode(), b"PK\1\2\x14\0" + fields
    central += struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + b"PK\5\6" + end


def npy(shape: tuple[int, ...], dtype: str) -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


def stored(**arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def box(kind: bytes, at: int, *numbers: int):
    """Return a function that puts numbers into the box of an mp4, so many bytes after its name."""

    def change(content: bytes) -> bytes:
        start = content.index(kind) + 4 + at
        data = struct.pack(f">{len(numbers)}I", *numbers)
        return content[:start] + data + content[start + len(data) :]

    return change


def avi(content: bytes) -> bytes:
    start = content.index(b"avih") + 8
    return content[: start + 16] + struct.pack("<I", BILLION) + content[start + 20 :]


def header_of(content: bytes, **entry) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + content[-64:]


def keys(count: int):
    """Return a function that adds so many keys to a JSON file."""
    return lambda content: json.dumps({**json.loads(content), **{f"k{at}": at for at in range(count)}}).encode()


def changed(**values):
    """Return a function that changes values of a JSON file; ``a__b`` names the key ``b`` of ``a``."""

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        for name, value in values.items():
            *above, key = name.split("__")
            reduce(dict.__getitem__, above, document)[key] = value
        return json.dumps(document).encode()

    return change


def with_integers(content: bytes) -> bytes:
    """Return a file of ``torch.save`` in which a weight, and not one that an architecture is read from, is whole."""
    import torch

    data = torch.load(io.BytesIO(content), weights_only=False)
    weights = data.get("ema") or data.get("model") or data
    name = next(name for name in weights if name.endswith("to_out.0.weight"))
    weights[name] = weights[name].long()
    torch.save(data, buffer := io.BytesIO())
    return buffer.getvalue()


def parquet(rows: int = 1, size: int = 0, compression: str = "none", folded: bool = True, claimed: int | None = None):
    """Return a function that makes a Parquet file of the same picture in each row, followed by so many zeros.

    Args:
        folded: Write the picture once, in a dictionary.
        claimed: The size in bytes that the footer says of it in place of its own.
    """

    def make(content: bytes) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        picture = pa.array([b"\x89PNG" + b"\0" * size])
        images = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), picture)
        cells = pa.StructArray.from_arrays([images, pa.nulls(rows, pa.string())], ["bytes", "path"])
        table = pa.table({"image": cells, "label": np.zeros(rows, np.int64)})
        options = dict(compression=compression, use_dictionary=folded, dictionary_pagesize_limit=size + 100)
        parquet.write_table(table, buffer := io.BytesIO(), write_statistics=False, store_schema=False, **options)
        content = buffer.getvalue()
        if claimed is not None:
            group = parquet.read_metadata(io.BytesIO(content)).row_group(0)
            for true in (group.total_byte_size, group.column(0).total_uncompressed_size):
                content = footer(varint(true), varint(claimed, len(varint(true))))(content)
        return content

    return make


def varint(number: int, length: int = 0) -> bytes:
    """Return a signed number as Parquet's footer has it, perhaps in more bytes than it needs."""
    parts = [(2 * number >> shift) & 127 for shift in range(0, 70, 7)]
    length = length or max(at for at, part in enumerate(parts) if part) + 1
    return bytes([*(part | 128 for part in parts[: length - 1]), parts[length - 1]])


def footer(old: bytes, new: bytes):
    """Return a function that replaces the last occurrence of a text of the same length: that in a file's footer."""
    return lambda content: content[: content.rindex(old)] + new + content[content.rindex(old) + len(old) :]


BOMBS = [
    ("picture.png", lambda content: png(100_000, 100_000)),
    ("picture.png", lambda content: png(8193, 8192)),
    ("picture.png", lambda content: png(2**31 - 1, 1)),
    ("frames of a video", lambda content: png(13_000, 13_000, 16)),
    ("picture.jpg", jpeg),
    ("picture.bmp", bmp),
    ("picture.gif", gif),
    ("picture.ppm", lambda content: b"P6\n100000 100000\n255\n\0\0\0"),
    ("picture.tif", lambda content: b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\3\0\1\0\0\0\xff\xff\xff\xff" * 9),
    ("video clip.gif", gif),
    ("video clip.mp4", box(b"stsz", 4, 0, BILLION)),
    ("video clip.mp4", box(b"stsz", 4, 1, BILLION)),
    ("video clip.mp4", box(b"stsz", 12, BILLION)),  # the size of one packet
    ("statistics", lambda content: stored(mu=npy((BILLION,), "<f8"), sigma=npy((1, 1), "<f8"))),
    ("statistics", lambda content: packed("mu.npy", 3 << 30)),
    ("images in an array", lambda content: stored(arr_0=npy((2, 10**5, 10**5, 3), "|u1"))),
    ("images in an array", lambda content: stored(arr_0=npy((BILLION, 8, 8, 3), "|u1"), arr_1=npy((BILLION,), "<i8"))),
    ("official .pt", lambda content: packed("checkpoint/data.pkl", 3 << 30)),
    ("checkpoint optimizer", lambda content: packed("archive/data.pkl", 3 << 30)),
    ("transformer weights", lambda content: struct.pack("<Q", 2**63 - 1) + content[8:]),
    ("transformer weights", lambda content: header_of(content, dtype="F32", shape=[2**62, 4], data_offsets=[0, 64])),
    ("transformer config", keys(10**6)),
    ("second tokenizer config", keys(10**5)),
    ("skip config", keys(10**5)),
    ("preset", lambda content: b"\n".join(b"k%d: 1" % number for number in range(10**6))),
    ("record beside a clip", lambda content: b"[" * 10**6),
    ("shard with labels", lambda content: content[:124] + b"77777777777\0" + content[136:]),
    ("rows in Parquet, none", parquet(rows=10**5)),
    ("rows in Parquet, none", parquet(rows=2000, size=1 << 20)),  # 2 GiB
    ("rows in Parquet, zstd", parquet(size=70 << 20, compression="zstd", folded=False)),
    ("rows in Parquet, none", footer(b"PAR1", b"PARE")),  # an encrypted footer
    ("rows in Parquet, none", lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1"),
    ("rows in Parquet, none", lambda content: content[:200] + b"\xff" * 200 + content[400:]),
    ("splits of a data set", changed(splits=["../stranger-secret"])),
    ("splits of a data set", changed(splits=["train", "/etc"])),
]  # fmt: skip

HARMLESS = [
    ("model card", lambda content: b"---\n" + LAUGHS.encode() + b"\ntags: *h\n---\n"),
    ("video clip.mp4", box(b"avc1", 24, SIDE << 16 | SIDE)),
    ("video clip.mp4", box(b"stts", 4, 1, BILLION, 1)),
    ("picture.png", lambda content: content[:33] + b"\x7f\xff\xff\xff" + content[37:]),
    ("video clip.avi", avi),
    (
        "shard of latents",
        lambda content: header_of(content, dtype="F32", shape=[BILLION], data_offsets=[0, 4 * BILLION]),
    ),
]
"""Files that may be read for what they hold, without the memory that their headers claim."""
FOUND = [
    ("labels in a table", lambda content: b"a," * 200_000),  # its columns were counted for each column
    ("official .pt", lambda content: b"\x80\x02X\xff\xff\xff\x7f"),  # a text of 2 GiB, in the format of torch 1.5
    ("checkpoint optimizer", lambda content: b"\x80\x02X\xff\xff\xff\x7f"),
    ("index of shards", lambda content: b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f"),  # a byte array of 2^60 bytes
    *(
        (name, lambda content, text=text: content + text % (b"f" * 4000))
        for name in ("preset", "plan")
        for text in (
            b"k: 0x%s\n",
            b"train: {a: [0x%s]}\n",
            b"? 0x%s\n: 1\n",
            b"k: !!set {0x%s}\n",
            b"k: !!omap [a: 0x%s]\n",
        )
    ),
    ("official video .pt", with_integers),
    ("checkpoint record", lambda content: b"[" * 100_000),
    ("facts of a data set", changed(features__label__names=[["circle"], ["square"]])),
    # an optional column becomes a required one, which its statistics contradict: pyarrow aborted the process
    ("rows in Parquet, none", lambda content: content.replace(b"%\x02\x18\x05label", b"%\x00\x18\x05label")),
    ("CLIP preprocessor", lambda content: b"3"),
    ("CLIP tokenizer", lambda content: b"{}"),
    ("CLIP preprocessor", changed(image_mean=[0.5])),
    ("losses", lambda content: b"3\n"),
    ("losses", lambda content: b'{"loss": [1]}\n{"loss": 1}\n\xff\n'),
    ("interrupted study", lambda content: b"3"),
    ("skip config", changed(backbone=["a"] * 3000)),  # it was quoted whole
    ("model index", changed(scheduler=["diffusers", "a\nb" * 3000])),
]


@pytest.mark.parametrize(
    ("name", "make"), BOMBS + HARMLESS + FOUND, ids=[name.replace(" ", "-") for name, _ in BOMBS + HARMLESS + FOUND]
)
def test_a_bomb_is_refused(name, make, sandbox, worlds):
    reader = next(reader for reader in READERS if reader.name == name)
    folder = worlds(reader)
    file = folder / reader.file
    with spoiling(file) as spoil:
        spoil(make(file.read_bytes()))
        verdict = sandbox.read(name, folder)
    assert not verdict.faults
    assert verdict.refusal or (name, make) in HARMLESS


def test_what_a_parquet_file_unfolds_to_is_said_by_its_pages_and_not_by_its_footer():
    from pyarrow.parquet import read_metadata

    file = io.BytesIO(parquet(size=10**6, compression="zstd", claimed=1000)(b""))
    group = read_metadata(file).row_group(0)
    assert group.total_byte_size == group.column(0).total_uncompressed_size == 1000
    assert unfolded(file)[0][0].bytes > 10**6
