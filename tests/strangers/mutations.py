"""Hypothesis strategies of spoiled files: each takes the content of a valid file, and draws what a stranger, or a bad
disk, might have made of it."""

import contextlib
import copy
import csv
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from skipdit_cli.files.checked import CHECKSUM, digest

PATHS = (
    "../../../../../../etc/passwd", "/etc/passwd", "../stranger-secret.png", "../stranger-secret", "..", ".", "", "/",
    "\\\\server\\share\\a.png", "C:\\a.png", "http://127.0.0.1:9/a.png", "file:///etc/passwd", "hf://a/b", "~/a",
    "a/../../stranger-secret.png", "/dev/zero", "/proc/self/mem", "\0", "a" * 300, "a/" * 3000,
)  # fmt: skip
TEXTS = (
    "x", " ", "\n", "a\nb\r\nc", "\x1b[31m\u202e", "\ud800", "\ufeff", "x" * 5000, "8", "1e400", "nan", "None", "{}",
    "stranger_module", "stranger_module.Canary", "__import__('os').system('ls')", "!!python/object/apply:os.system",
    "../stranger_module.py", "torch.load", "antigravity", "os.system", "load_pipeline", "DiffusionPipeline",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 65536, 10**6, 10**7, 10**9, 10**12, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63),
    10**30, 10**100, 0.5, -3.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), True, False, None,
)  # fmt: skip
HOSTILE_KEYS = {
    "auto_map": {"AutoModel": "stranger_module.Canary", "AutoConfig": "stranger_module.Canary"},
    "custom_pipeline": "stranger_module",
    "trust_remote_code": True,
    "_class_name": "stranger_module.Canary",
    "_name_or_path": "/etc",
    "architectures": ["stranger_module.Canary"],
    "tokenizer_class": "stranger_module.Canary",
    "model_type": "stranger_module",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "torch_dtype": "stranger_module",
    "__class__": "stranger_module.Canary",
    "requires_safety_checker": ["stranger_module", "Canary"],
    "push_to_hub": "a/b",
    "output": "stranger-canary",
    "file_name": "../stranger-secret.png",
    "x" * 3000: 1,
    "": 1,
    "a\nb\x1b[31m": 1,
}
MORE_KEYS = {str(number): number for number in range(3000)}


def scalars():
    """Draw a value that some reader will not expect."""
    return st.sampled_from((*NUMBERS, *TEXTS, *PATHS)) | st.integers() | st.floats() | st.text(max_size=20)


def nested(depth: int) -> list:
    """Return a list in a list in a list."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def hostile_keys():
    """Draw a mapping with one key that would run code, or write, were it followed."""
    return st.sampled_from([{key: value} for key, value in HOSTILE_KEYS.items()]).map(copy.deepcopy)


def values():
    """Draw a value of any JSON type."""
    deep = st.sampled_from((5, 70, 100)).map(nested)
    many = st.sampled_from(([], {}, [None], ["a"] * 3000, [[1]], {"a": {"b": [1]}}, [1, 2, 3], MORE_KEYS))
    many = many.map(copy.deepcopy)
    return scalars() | many | deep | st.lists(scalars(), max_size=3) | st.dictionaries(st.text(max_size=5), scalars())


def places(document, at=()):
    """Return the path of everything in a document, the whole of it first."""
    found = [at]
    if isinstance(document, (dict, list)):
        for key, value in list(document.items() if isinstance(document, dict) else enumerate(document))[:200]:
            found += places(value, (*at, key))
    return found


@st.composite
def documents(draw, document, edits: tuple[int, ...] = (1, 1, 1, 2, 3)):
    """Draw a document of JSON types in which values, types, keys or the nesting are changed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from(edits))):
        at = draw(st.sampled_from(places(document)))
        if not at:
            if draw(st.integers(0, 9)) == 0:
                return draw(values())
            if isinstance(document, dict):
                document |= draw(hostile_keys())
            continue
        parent = document
        for key in at[:-1]:
            parent = parent[key]
        match draw(st.integers(0, 11)):
            case 0:
                del parent[at[-1]]
            case 1:
                parent[at[-1]] = [parent[at[-1]]]
            case 2:
                parent[at[-1]] = {"a": parent[at[-1]]}
            case 3 if isinstance(parent, dict):
                parent[draw(st.text(max_size=9) | st.sampled_from(TEXTS))] = parent.pop(at[-1])
            case 4 if isinstance(parent[at[-1]], list):
                parent[at[-1]] = parent[at[-1]] * draw(st.sampled_from((2, 1000)))
            case 5 if isinstance(parent[at[-1]], dict):
                parent[at[-1]] |= draw(hostile_keys())
            case 6 if isinstance(parent[at[-1]], (int, float)):
                parent[at[-1]] = parent[at[-1]] * draw(st.sampled_from((-1, 2, 1000, 10**9))) + draw(
                    st.integers(-1, 1)
                )
            case _:
                parent[at[-1]] = draw(values())
    return document


@st.composite
def spoiled(draw, content: bytes, edits: tuple[int, ...] = (1, 1, 2, 4)):
    """Draw bytes in which some are flipped, cut off, left out, inserted, repeated or overwritten by numbers."""
    spoiled = bytearray(content)
    for _ in range(draw(st.sampled_from(edits))):
        end = len(spoiled) if draw(st.booleans()) else min(len(spoiled), 512)  # headers lie in front
        at = draw(st.integers(0, max(end - 1, 0)))
        length = draw(st.sampled_from((1, 2, 4, 8, 100)))
        match draw(st.integers(0, 6)):
            case 0:
                spoiled[at : at + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in spoiled[at : at + 1])
            case 1:
                del spoiled[at:]
            case 2:
                del spoiled[at : at + length]
            case 3:
                spoiled[at:at] = draw(st.binary(max_size=20))
            case 4:
                spoiled[at:at] = spoiled[at : at + length]
            case 5:
                number = draw(st.sampled_from((0, 1, 127, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)))
                size = draw(st.sampled_from((1, 2, 4, 8)))
                order = draw(st.sampled_from(("little", "big")))
                spoiled[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, order)
            case 6:
                spoiled[at : at + length] = bytes([draw(st.sampled_from((0, 255, 128, 27, 10)))]) * length
    return bytes(spoiled)


JSON_TEXTS = (
    "", "null", "[]", '"x"', "3", "NaN", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff{}", "{}{}",
    '{"a": 1, "a": 2}', '{"\\ud800": 1}', '{"a": -1e999999}', "[1e999999999999999]", "{'a': 1}",
)  # fmt: skip


def as_json(document) -> bytes:
    return json.dumps(document).encode()


def json_files(content: bytes):
    """Draw the content of a JSON file."""
    texts = st.sampled_from(JSON_TEXTS).map(lambda text: text.encode())
    document = documents(json.loads(content)).map(as_json)
    return document | document | document | spoiled(content) | texts | st.just(b"\xff\xfe{\0}\0")


def checked_files(content: bytes):
    """Draw a JSON file that holds its own checksum, which may be right all the same."""
    document = json.loads(content)
    document.pop(CHECKSUM)

    def write(changed) -> bytes:
        return as_json({**changed, CHECKSUM: digest(changed)} if isinstance(changed, dict) else changed)

    return documents(document).map(lambda changed: json.loads(as_json(changed))).map(write) | json_files(content)


def json_lines(content: bytes):
    """Draw the content of a file with a JSON object in each line."""
    rows = [json.loads(line) for line in content.splitlines()]
    changed = documents(rows).map(lambda rows: b"\n".join(map(as_json, rows if isinstance(rows, list) else [rows])))
    broken = st.sampled_from(JSON_TEXTS).map(lambda text: content + text.encode())
    return changed | changed | spoiled(content) | broken


def csv_files(content: bytes):
    """Draw the content of a CSV file."""
    rows = list(csv.reader(io.StringIO(content.decode())))

    @st.composite
    def tables(draw):
        table = copy.deepcopy(rows)
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            row = draw(st.sampled_from(table))
            at = draw(st.integers(0, len(row)))
            row[at : at + draw(st.integers(0, 1))] = [str(draw(scalars()))]
        text = io.StringIO()
        writer = csv.writer(text, quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))))
        writer.writerows(table)
        return text.getvalue().encode(errors="surrogatepass")

    texts = (
        b'file_name,text\n"a.png,b\n',
        b"\0",
        b"a;b;c\n1;2;3\n",
        b'"' * 10_000,
        b"a," * 200_000,
        b'a,"' + b"x" * 200_000,
    )
    return tables() | tables() | spoiled(content) | st.sampled_from(texts)


LAUGHS = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi"))])  # fmt: skip
YAML_TEXTS = (
    LAUGHS, "&a [*a]", "a: &a {<<: *a}", "!!python/object/apply:os.mkdir [stranger-canary]", "!!timestamp 2001-99-99",
    "!!python/name:stranger_module.Canary", "!!python/module:stranger_module", "!!binary aGVsbG8=", "!!set {a}",
    "!!omap [a: 1]", "!!map [1]", "!!int x", "!!float []", "!<tag:x> 1", "2024-13-45", "1000:20", "0x" + "f" * 4000,
    "9" * 5000, "[" * 100_000, "{a: " * 3000, "- " * 3000, "? a\n? b", "? [a]\n: 1", "a: 1\na: 2", "---\n---\n", "\t",
    "%YAML 9.9\n---", "\n".join(f"k{number}: 1" for number in range(10**5)), "k: " + "x" * 300_000, "x: !!str", "*a",
    "|\n" + " " * 5000, "\x85", "\ufeffa: 1", "a: 'b", "=", "<<: {a: 1}", "<<: 3", ".inf", "-.nan", "1_000", "0b2",
)  # fmt: skip


def yaml_files(content: bytes):
    """Draw the content of a YAML file."""
    import yaml

    def write(document) -> bytes:
        try:
            return yaml.dump(document, Dumper=yaml.CSafeDumper).encode()
        except UnicodeEncodeError:  # half a surrogate pair
            return as_json(document)

    document, lines = yaml.safe_load(content), content.decode().splitlines()

    @st.composite
    def texts(draw):
        fragment, changed = draw(st.sampled_from(YAML_TEXTS)), list(lines)
        at = draw(st.integers(0, len(lines) - 1))
        key = changed[at].partition(":")[0]
        changed[at : at + 1] = [draw(st.sampled_from((f"{key}: {fragment}", fragment, f"{changed[at]}\n{fragment}")))]
        return "\n".join(changed).encode()

    return documents(document).map(write) | texts() | spoiled(content)


def safetensors_files(content: bytes):
    """Draw the content of a safetensors file: lengths, shapes, dtypes and offsets that lie."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]

    def pack(header, length: int = 0, body: bytes = body) -> bytes:
        text = as_json(header)
        return struct.pack("<Q", (len(text) + length) % 2**64) + text + body

    names = [name for name in header if name != "__metadata__"]
    dtypes = ("I32", "U32", "F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "x", 3)
    numbers = st.sampled_from(NUMBERS[:20])

    @st.composite
    def lies(draw):
        changed = copy.deepcopy(header)
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            entry, other = changed[draw(st.sampled_from(names))], changed[draw(st.sampled_from(names))]
            match draw(st.integers(0, 6)):
                case 0:
                    entry["dtype"] = draw(st.sampled_from(dtypes))
                case 1:
                    entry["shape"] = draw(st.lists(numbers, max_size=4))
                case 2:
                    entry["data_offsets"] = other["data_offsets"]
                case 3:
                    entry["data_offsets"] = draw(st.lists(numbers, min_size=1, max_size=3))
                case 4:
                    entry["shape"] = [*entry["shape"], *([1] * draw(st.sampled_from((1, 30, 2000))))]
                case 5:
                    changed[draw(st.text(max_size=5))] = entry
                case 6:
                    changed["__metadata__"] = draw(documents(changed.get("__metadata__", {"a": "b"})))
        return pack(changed, draw(st.sampled_from((0, 0, 0, 1, -1, 2**63, 10**9))))

    @st.composite
    def other_tensors(draw):
        """A file that is whole, but whose tensors have other names, shapes, dtypes or values."""
        changed = copy.deepcopy(header)
        for _ in range(draw(st.sampled_from((1, 1, 2)))):
            name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
            match draw(st.integers(0, 3)):
                case 0:
                    changed[name]["shape"] = changed[name]["shape"][::-1]
                case 1:
                    changed[name], changed[other] = changed[other], changed[name]
                case 2:
                    same = {"F32": "I32", "F16": "BF16", "I64": "F64"}
                    changed[name]["dtype"] = same.get(changed[name]["dtype"], "U8")
                case 3:
                    changed[draw(st.text(max_size=5)) + name] = changed.pop(name)
                    break
        return pack(changed, body=draw(st.sampled_from((body, b"\xff" * len(body), b"\0" * len(body)))))

    return lies() | other_tensors() | documents(header).map(pack) | spoiled(content)


class Code:
    """A pickle that would make a folder, were it opened."""

    def __reduce__(self):
        import os

        return os.mkdir, ("stranger-canary",)


def torch_files(content: bytes):
    """Draw the content of a file of ``torch.save``: other objects, other tensors, code, bombs and broken zips."""
    import torch

    data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)

    def save(data, **arguments) -> bytes:
        buffer = io.BytesIO()
        torch.save(data, buffer, **arguments)
        return buffer.getvalue()

    tensors = {
        "sparse": lambda x: x.to_sparse(),
        "complex": lambda x: x.cfloat(),
        "meta": lambda x: x.to("meta"),
        "expanded": lambda x: x[:1].expand(10**9, *x.shape[1:]) if x.ndim else x,
        "empty": lambda x: x[:0] if x.ndim else x,
        "flat": lambda x: x.reshape(-1),
        "transposed": lambda x: x.T if x.ndim == 2 else x,
        "nan": lambda x: x.float() * float("nan"),
        "long": lambda x: x.long(),
        "half": lambda x: x.half(),
        "fp8": lambda x: x.float().to(torch.float8_e4m3fn),
        "padded": lambda x: torch.cat([x, x]) if x.ndim else x,
        "parameter": lambda x: torch.nn.Parameter(x.float()),
        "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
        "number": lambda x: 3,
        "none": lambda x: None,
        "code": lambda x: Code(),
    }

    @st.composite
    def objects(draw):
        changed = _copied(data)
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            at = draw(st.sampled_from([place for place in places(changed) if place] or [()]))
            parent = changed
            for key in at[:-1]:
                parent = parent[key]
            if not at or not isinstance(parent, (dict, list)):
                continue
            value, action = parent[at[-1]], draw(st.integers(0, 4))
            if isinstance(value, torch.Tensor) and action:
                change = draw(st.sampled_from([*tensors.values()]))
                with contextlib.suppress(RuntimeError, NotImplementedError):  # it was changed before
                    parent[at[-1]] = change(value) if value.numel() < 10**6 else value  # expanded, and of no memory
            elif action == 1:
                del parent[at[-1]]
            elif action == 2 and isinstance(parent, dict):
                parent[draw(st.sampled_from((*TEXTS, 3, None, (1, 2))))] = parent.pop(at[-1])
            else:
                parent[at[-1]] = draw(scalars() | st.just(Code()) | st.just([]) | st.just({}))
        return save(changed, _use_new_zipfile_serialization=draw(st.integers(0, 3)) > 0)

    return objects() | objects() | spoiled(content) | zips(content) | st.sampled_from(PICKLES)


PICKLES = (
    b"", b"P", pickle.dumps(Code()), pickle.dumps(Code(), 0), b"\x80\x02" + b"(" * 100_000, pickle.dumps([1]),
    b"cos\nmkdir\n(S'stranger-canary'\ntR.", b"version https://git-lfs.github.com/spec/v1\n",
    b"\x80\x02X\xff\xff\xff\x7f",
    b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\x0f", b"\x80\x02]" + b"2" * 50 + b".",
)  # fmt: skip


def _copied(data):
    """Return nested containers of the same leaves."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(item) for item in data] if isinstance(data, list) else data


@st.composite
def zips(draw, content: bytes):
    """Draw a zip with other names, sizes or contents of its members; some unfold to much more than they are."""
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    name, buffer = draw(st.sampled_from([*members])), io.BytesIO()
    kind = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    match draw(st.integers(0, 4)):
        case 0:
            members[name] = draw(spoiled(members[name]))
        case 1:
            members[draw(st.sampled_from(("../stranger-canary", "/tmp/stranger-canary", "a\\..\\b", "x" * 300)))] = (
                b"x"
            )
        case 2:
            members[name] = members[name] + b"\0" * 30_000_000
            kind = zipfile.ZIP_DEFLATED
        case 3:
            del members[name]
        case 4:
            members[draw(st.sampled_from(("arr_0.npy", "mu.npy", "archive/data.pkl")))] = members.pop(name)
    with zipfile.ZipFile(buffer, "w", kind) as opened:
        for member, data in members.items():
            opened.writestr(member, data)
    return buffer.getvalue() if draw(st.booleans()) else draw(spoiled(buffer.getvalue()))


def npz_files(content: bytes):
    """Draw an .npz file: headers of arrays that lie, objects, orders, absurd shapes."""
    with np.load(io.BytesIO(content), allow_pickle=False) as opened:
        arrays = dict(opened)

    def write(members: dict[str, bytes], compressed: bool) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as opened:
            for name, data in members.items():
                opened.writestr(f"{name}.npy", data)
        return buffer.getvalue()

    def as_npy(array, header: dict | None = None) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=True)
        if header is None:
            return buffer.getvalue()
        text = repr(header).encode() + b"\n"
        return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + array.tobytes()

    descriptions = ("<f8", "<f4", "|O", "|u1", "<i8", "<M8[D]", "<U9999", "|V8", ">c16", [("a", "<f8")], "x", 3, "|S0")
    shapes = st.lists(st.sampled_from((0, 1, 2, 3, 10**5, 10**9, 2**62, -1)), max_size=5).map(tuple)

    @st.composite
    def lies(draw):
        members = {name: as_npy(array) for name, array in arrays.items()}
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            name = draw(st.sampled_from([*arrays]))
            array = arrays[name]
            match draw(st.integers(0, 5)):
                case 0 | 1:
                    header = {"descr": array.dtype.str, "fortran_order": draw(st.booleans()), "shape": array.shape}
                    header[draw(st.sampled_from((*header, "a")))] = draw(
                        st.sampled_from(descriptions) | shapes | scalars()
                    )
                    members[name] = as_npy(array, header)
                case 2:
                    members.pop(name, None)
                case 3:
                    other = st.sampled_from(
                        (array.astype(object), array[None], array.astype("U"), np.array(3.0), array.T)
                    )
                    members[name] = as_npy(draw(other))
                case 4:
                    text = json.dumps(draw(documents({"checksum": "a", "image_size": 8})))
                    members[name] = as_npy(np.array(text))
                case 5 if array.dtype.kind in "fiub":
                    with np.errstate(all="ignore"):
                        numbers = array.astype(float) * draw(st.sampled_from((float("nan"), 1e308, -1, 0)))
                    members[name] = as_npy(numbers.astype(draw(st.sampled_from((float, "f4", complex)))))
        return write(members, draw(st.booleans()))

    return lies() | lies() | zips(content) | spoiled(content)


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    size = len(data) if length is None else length
    return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a valid PNG."""
    at, chunks = 8, []
    while at < len(content):
        size = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


BOMB = zlib.compress(b"[" * 50_000_000)


def png_files(content: bytes):
    """Draw a PNG: absurd headers, chunks that are missing, doubled, cut or of another length, and bombs."""
    chunks = chunks_of(content)
    extra = (
        (b"zTXt", b"skipdit\0\0" + BOMB), (b"iTXt", b"skipdit\0\1\0\0\0" + BOMB), (b"iCCP", b"a\0\0" + BOMB),
        (b"acTL", struct.pack(">II", 10**9, 0)), (b"PLTE", b"abc" * 300), (b"tRNS", b"a" * 300),
        (b"eXIf", b"II*\0" + b"\xff" * 50), (b"tEXt", b"skipdit\0{}"), (b"fcTL", b"\0" * 26), (b"zTXt", b"a"),
        (b"IDAT", zlib.compress(b"\0" * 30_000_000)),
    )  # fmt: skip

    @st.composite
    def pngs(draw):
        changed = [(kind, data, None) for kind, data in chunks]
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            at = draw(st.integers(0, len(changed) - 1))
            kind, data, length = changed[at]
            match draw(st.integers(0, 5)):
                case 0:
                    sides = st.sampled_from((0, 1, 8, 4096, 65536, 100_000, 2**31 - 1, 2**31))
                    bits = st.sampled_from((1, 2, 4, 8, 16, 3))
                    fields = (
                        draw(sides),
                        draw(sides),
                        draw(bits),
                        draw(st.integers(0, 7)),
                        0,
                        0,
                        draw(st.integers(0, 2)),
                    )
                    changed[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields), None)
                case 1:
                    changed.insert(at, (*draw(st.sampled_from(extra)), None))
                case 2:
                    del changed[at]
                case 3:
                    changed[at] = (kind, data, draw(st.sampled_from((0, 1, 2**31 - 1, 2**32 - 1))))
                case 4:
                    changed[at] = (kind, draw(spoiled(data)), length)
                case 5:
                    changed.insert(at, changed[at])
            if not changed:
                break
        return content[:8] + b"".join(chunk(*each) for each in changed)

    return pngs() | pngs() | spoiled(content)


def records(content: bytes):
    """Draw a PNG whose record of ``skipdit sample`` is changed."""
    kinds = dict(chunks_of(content))
    record = json.loads(kinds[b"iTXt"].partition(b"\0\0\0\0\0")[2])
    texts = st.sampled_from(JSON_TEXTS).map(lambda text: text.encode())

    def write(text: bytes) -> bytes:
        told = {**kinds, b"iTXt": b"skipdit\0\0\0\0\0" + text}
        return content[:8] + b"".join(chunk(*each) for each in told.items())

    return documents(record).map(as_json).map(write) | texts.map(write) | png_files(content)


def jpeg_records(content: bytes):
    """Draw a JPEG whose record of ``skipdit sample`` is changed."""
    from skipdit_cli.media.pictures import EXIF_CHARSET, EXIF_COMMENT, EXIF_IFD

    def write(text: bytes) -> bytes:
        exif, buffer = Image.Exif(), io.BytesIO()
        exif.get_ifd(EXIF_IFD)[EXIF_COMMENT] = EXIF_CHARSET + text[:60_000]
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
        return buffer.getvalue()

    record = {"skipdit": {"settings": {"model": "m", "seed": 3, "class_labels": "1"}}}
    texts = st.sampled_from(JSON_TEXTS).map(lambda text: text.encode())
    return documents(record).map(as_json).map(write) | texts.map(write) | spoiled(write(as_json(record)))


@st.composite
def _members(draw, members: list[tarfile.TarInfo], contents: list[bytes]) -> bytes:
    kinds = (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0", b"Z")
    buffer, entries = io.BytesIO(), [copy.copy(entry) for entry in members]
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        at = draw(st.integers(0, len(entries) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                entries[at].name = draw(st.sampled_from(PATHS[:16])) + draw(
                    st.sampled_from((".png", ".txt", ".json", ""))
                )
            case 1:
                entries[at].type = draw(st.sampled_from(kinds))
                entries[at].linkname = draw(st.sampled_from(PATHS[:8]))
            case 2:
                entries[at].size = draw(st.sampled_from((0, 1, 511, 10**6, 10**9, 8**11 - 1)))
            case 3:
                contents = [*contents]
                contents[at] = draw(spoiled(contents[at]) | values().map(as_json))
                entries[at].size = len(contents[at])
            case 4:
                entries.append(entries[at]), contents.append(contents[at])
    for entry, data in zip(entries, contents):
        buffer.write(entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        buffer.write(data + b"\0" * (-len(data) % 512))
    return buffer.getvalue() + b"\0" * draw(st.sampled_from((0, 512, 1024)))


def tar_files(content: bytes):
    """Draw a tar file: members with other names, types, sizes and contents."""
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        members = opened.getmembers()
        contents = [opened.extractfile(entry).read() for entry in members]
    return _members(members, contents) | spoiled(content)


BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")


def boxes_of(content: bytes, start: int = 0, end: int | None = None) -> list[tuple[int, int, bytes]]:
    """Return offset, size and kind of every box of an mp4."""
    end, boxes = len(content) if end is None else end, []
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        if size < 8:
            break
        boxes.append((start, size, kind))
        if kind in BOXES:
            boxes += boxes_of(content, start + 8, start + size)
        start += size
    return boxes


def mp4_files(content: bytes):
    """Draw an mp4 whose boxes have other sizes, counts, dimensions or durations."""
    boxes = [box for box in boxes_of(content) if box[2] != b"mdat"]

    @st.composite
    def lies(draw):
        changed = bytearray(content)
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            offset, size, _kind = draw(st.sampled_from(boxes))
            number = draw(st.sampled_from((0, 1, 2, 2**15, 2**16, 10**9, 2**31 - 1, 2**31, 2**32 - 1)))
            at = offset + draw(st.sampled_from([0, *range(8, max(size, 9), 4)]))
            changed[at : at + 4] = struct.pack(">I", number)
        return bytes(changed)

    return lies() | spoiled(content)


def card_files(content: bytes):
    """Draw a model card: its front matter is YAML between two lines of dashes."""
    front, text = content.removeprefix(b"---\n").split(b"\n---\n")
    return yaml_files(front).map(lambda changed: b"---\n" + changed + b"\n---\n" + text) | spoiled(content)


def parquet_files(content: bytes):
    """Draw a Parquet file: its footer and the headers of its pages hold numbers of variable length, which are spoiled
    where they lie; the schema of Arrow and of `datasets` is in the footer, too."""
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    numbers = (b"\0", b"\x7f", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x08", b"\xfe" + b"\xff" * 8 + b"\x01")

    @st.composite
    def lies(draw):
        changed = bytearray(content)
        for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
            at = draw(st.integers(footer if draw(st.booleans()) else 4, len(content) - 9))
            number = draw(st.sampled_from(numbers))
            changed[at : at + len(number)] = number
        return bytes(changed)

    def with_facts(facts) -> bytes:
        """Spoil the facts of `datasets` in place: the footer keeps its length."""
        start = content.index(b'{"info"', footer)
        end = content.index(b"}}}}", start) + 4
        return content[:start] + as_json(facts)[: end - start].ljust(end - start) + content[end:]

    start = content.index(b'{"info"', footer)
    facts = json.loads(content[start : content.index(b"}}}}", start) + 4])
    return lies() | lies() | documents(facts).map(with_facts) | spoiled(content)


def index_files(content: bytes):
    """Draw the index of a checkpoint in shards: other places, lengths, shapes, chunks and dtypes of its tensors."""

    @st.composite
    def lies(draw):
        index = pickle.loads(content)
        objects = [index, *index.storage_data.values(), *index.storage_data]
        for entry in index.state_dict_metadata.values():
            objects += [entry, entry.properties, *entry.chunks]
        for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
            one = draw(st.sampled_from(objects))
            name = draw(
                st.sampled_from(sorted(vars(one).keys() - {"memory_format"}))
            )  # which has to be valid to be written
            number = st.sampled_from((0, 1, -1, 3, 10**9, 2**62, 2**63))
            shape = st.lists(number, max_size=3).map(torch.Size)
            others = st.sampled_from((torch.float64, torch.int8, None, Code(), {}, {"a": index}, index.storage_data))
            object.__setattr__(one, name, draw(number | shape | st.sampled_from(PATHS) | others | values()))
        return pickle.dumps(index)

    import torch

    return lies() | lies() | spoiled(content) | st.sampled_from(PICKLES)
