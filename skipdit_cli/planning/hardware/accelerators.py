"""Devices that a run can be planned for: their memory and their peak rates, by name or as the user gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.formats import GIB

PER_MACHINE = 8
"""Devices that one machine holds, and whose links their data sheets give."""
NETWORK = 50e9
"""Bytes a second that a device sends to other machines: 400 Gbit/s for each of them, an assumption."""
MOST = 100_000
"""The most devices that are planned for."""


@dataclass(frozen=True)
class Accelerator:
    """One device, by its data sheet.

    Args:
        name: Its name.
        memory: Bytes.
        bf16, fp32: Peak FLOP/s of dense products in bfloat16 (float32 accumulation) and in float32 (without TF32,
            which torch does not use by default); None where unknown.
        bandwidth: Bytes a second that its memory reads or writes; None where unknown.
        link: Bytes a second that it sends to another device of the machine: half of the bidirectional rate that data
            sheets give; None where unknown.
        source: Where the figures come from.
    """

    name: str
    memory: int
    bf16: float | None = None
    fp32: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    source: str = "as given"


def _accelerator(name: str, gib: int, bf16: float, fp32: float, bandwidth: float, both_ways: float, source: str):
    """Return a device from TFLOP/s and GB/s; the link is given in both directions together."""
    return Accelerator(name, gib * GIB, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e9, both_ways * 1e9 / 2, source)


NVIDIA = "https://www.nvidia.com/en-us/"
ACCELERATORS = (
    _accelerator("B200", 180, 2250, 75, 7700, 1800, f"{NVIDIA}data-center/hgx/ (an eighth of HGX B200)"),
    _accelerator("H200", 141, 989, 67, 4800, 900, f"{NVIDIA}data-center/h200/"),
    _accelerator("H100", 80, 989, 67, 3350, 900, f"{NVIDIA}data-center/h100/ (SXM)"),
    _accelerator("H100-PCIe", 80, 756, 51, 2000, 128, "NVIDIA H100 PCIe product brief PB-11133-001"),
    _accelerator("A100-80GB", 80, 312, 19.5, 2039, 600, f"{NVIDIA}data-center/a100/ (SXM)"),
    _accelerator("A100-40GB", 40, 312, 19.5, 1555, 600, f"{NVIDIA}data-center/a100/ (SXM)"),
    _accelerator("L40S", 48, 362, 91.6, 864, 64, f"{NVIDIA}data-center/l40s/"),
    _accelerator("L4", 24, 121, 30.3, 300, 64, f"{NVIDIA}data-center/l4/ (half of its figure with sparsity)"),
    _accelerator("A10", 24, 125, 31.2, 600, 64, f"{NVIDIA}data-center/products/a10-gpu/"),
    _accelerator("RTX5090", 32, 209.5, 104.8, 1792, 128, "NVIDIA RTX Blackwell GPU architecture, appendix"),
    _accelerator("RTX4090", 24, 165.2, 82.6, 1008, 64, "NVIDIA Ada GPU architecture, appendix A"),
    _accelerator("RTX3090", 24, 71, 35.6, 936, 64, "NVIDIA Ampere GA102 GPU architecture, appendix A"),
    _accelerator("MI300X", 192, 1307, 163.4, 5300, 896, "AMD Instinct MI300X data sheet"),
)
"""Dense peaks by the vendors' data sheets, which mostly print twice of them, with structured sparsity."""
ALIASES = {"a100": "A100-80GB", "h100sxm": "H100", "h100sxm5": "H100", "h200sxm": "H200"}
CPU = Accelerator("CPU", 0)
_UNITS = {"G": 1e9, "T": 1e12, "P": 1e15}
_FORM = "expected COUNTxDEVICE, such as 8xH100 or 1xCPU:24GB, or your own, such as 8x80GB:989TFLOPS"


@dataclass(frozen=True)
class Hardware:
    """Some devices of one kind.

    Args:
        text: As the user wrote it.
        count: The number of devices.
        device: Each of them.
    """

    text: str
    count: int
    device: Accelerator

    @property
    def link(self) -> float | None:
        """Bytes a second between the devices; over the network where one machine does not hold them."""
        if self.count <= PER_MACHINE or self.device.link is None:
            return self.device.link
        return min(self.device.link, NETWORK)


def parse_hardware(text: str) -> Hardware:
    """Return the hardware that ``--plan-hardware`` names.

    Args:
        text: ``COUNTxDEVICE``, where the device is a name of ``ACCELERATORS``, ``CPU`` or a size of memory, perhaps
            followed by a size, a peak in GFLOPS, TFLOPS or PFLOPS, and a bandwidth in GB/s, each after a colon.

    Raises:
        UsageError: It is of another form, or a name is unknown.
    """
    got = f"Got --plan-hardware '{text[:60]}' but"
    match = re.fullmatch(r"(?:(\d{1,9})\s*[xX]\s*)?([A-Za-z0-9][^:]*?)((?:\s*:[^:]+)*)", text.strip())
    if match is None:
        raise UsageError(f"{got} {_FORM}.")
    count = int(match[1] or 1)
    if not 1 <= count <= MOST:
        raise UsageError(f"{got} expected 1 to {MOST:,} devices; {_FORM}.")
    name, numbers = match[2], [part.strip() for part in match[3].split(":")[1:]]
    device = _find(name) or (Accelerator("device", 0) if _bytes_of(name) is not None else None)
    if device is None:
        names = [each.name for each in ACCELERATORS] + ["CPU"]
        raise UsageError(f"{got} {_FORM}; known are {', '.join(names)}.{nearest(name, names)}")
    for number in ([name] if device.name == "device" else []) + numbers:
        device = _with_number(device, number, got)
    if not device.memory:
        raise UsageError(f"{got} expected its memory as well, such as {count}x{name}:24GB.")
    return Hardware(text.strip(), count, device)


def _find(name: str) -> Accelerator | None:
    plain = _plain(name)
    plain = _plain(ALIASES.get(plain, plain))
    return next((each for each in (*ACCELERATORS, CPU) if _plain(each.name) == plain), None)


def _plain(name: str) -> str:
    """Return a name in lower case, without its vendor, hyphens and spaces."""
    return re.sub(r"[-_ ]|nvidia|amd|geforce|instinct", "", name.lower())


def _bytes_of(text: str) -> int | None:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*Gi?B", text, re.IGNORECASE)
    return None if match is None else int(float(match[1]) * GIB)


def _with_number(device: Accelerator, text: str, got: str) -> Accelerator:
    """Return a device with a figure of the user's in the place of its own."""
    memory = _bytes_of(text)
    if memory:
        return replace(device, memory=memory)
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*(?:([GTP])FLOPS|(GB/s))", text, re.IGNORECASE)
    value = 0.0 if match is None else float(match[1])
    if match is None or not value:
        raise UsageError(f"{got} '{text[:30]}' is no size (80GB), peak (989TFLOPS) or bandwidth (3350GB/s); {_FORM}.")
    if match[3]:
        return replace(device, bandwidth=value * 1e9)
    peak = value * _UNITS[match[2].upper()]
    return replace(device, bf16=peak, fp32=peak)


def rows() -> Iterator[list[str]]:
    """Yield the rows of the table of known devices, for the guide."""
    for each in ACCELERATORS:
        rates = [rate / scale for rate, scale in ((each.bf16, 1e12), (each.fp32, 1e12), (each.bandwidth, 1e9))
                 if rate is not None]  # fmt: skip
        link = (each.link or 0) / 1e9
        yield [each.name, f"{each.memory // GIB}", *(f"{rate:g}" for rate in rates), f"{link:g}", each.source]
