"""What devices hold and how fast they are, as their makers say.

The figures were written down by hand, and none was held against its maker's own page. Those of ``QUOTED`` were compared
with what others quote of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlx_peft.core.errors import UserError, suggest

Kind = Literal["cpu", "metal", "cuda"]

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as its maker has it.
        kind: what computes.
        memory: bytes; of a Mac, whose memory is the machine's, the most that it is sold with.
        bandwidth: bytes a second, of memory; None: not known.
        rates: operations a second by the numbers that are multiplied, without sparsity: ``float32``, ``tf32``, and
            ``half`` for float16 and bfloat16, added up in float32; what its maker does not say is not there.
        source: where the figures stand.
    """

    name: str
    kind: Kind
    memory: int
    bandwidth: float | None = None
    rates: Mapping[str, float] | None = None
    source: str = ""

    def rate(self, numbers: str) -> float | None:
        """Operations a second with such numbers; None where that is not known. TF32 is float32 without it."""
        rates = self.rates or {}
        return rates.get("float32" if numbers == "tf32" and numbers not in rates else numbers)


def _apple(name: str, gib: int, gigabytes: float, source: str, teraflops: float | None = None) -> Device:
    rates = None if teraflops is None else {"float32": teraflops * 1e12}
    return Device(f"Apple {name}", "metal", gib * GIB, gigabytes * 1e9, rates, f"Apple, {source}")


def _nvidia(
    name: str, gib: float, gigabytes: float, source: str, float32: float, half: float, tf32: float | None = None
) -> Device:
    rates = {"float32": float32, "half": half, **({} if tf32 is None else {"tf32": tf32})}
    terahertz = {numbers: rate * 1e12 for numbers, rate in rates.items()}
    return Device(f"NVIDIA {name}", "cuda", int(gib * GIB), gigabytes * 1e9, terahertz, f"NVIDIA, {source}")


BY_CORES = "and as many operations a core as the M2's 3.6 TFLOP/s by 10 cores"

DEVICES: Mapping[str, Device] = {
    "m1": _apple("M1", 16, 68.25, "press releases of 10 November 2020 and 6 June 2022 (half more is 100 GB/s)", 2.6),
    "m1-pro": _apple("M1 Pro", 32, 200, "press release of 18 October 2021", 5.2),
    "m1-max": _apple("M1 Max", 64, 400, "press release of 18 October 2021", 10.4),
    "m1-ultra": _apple("M1 Ultra", 128, 800, "press release of 8 March 2022", 21.0),
    "m2": _apple("M2", 24, 100, "press release of 6 June 2022", 3.6),
    "m2-pro": _apple("M2 Pro", 32, 200, f"press release of 17 January 2023: 19 cores, {BY_CORES}", 6.84),
    "m2-max": _apple("M2 Max", 96, 400, f"press release of 17 January 2023: 38 cores, {BY_CORES}", 13.68),
    "m2-ultra": _apple("M2 Ultra", 192, 800, f"press release of 5 June 2023: 76 cores, {BY_CORES}", 27.36),
    "m3": _apple("M3", 24, 100, "technical specifications of the MacBook Pro, November 2023"),
    "m3-pro": _apple("M3 Pro", 36, 150, "technical specifications of the MacBook Pro, November 2023"),
    "m3-max": _apple("M3 Max", 128, 400, "technical specifications of the MacBook Pro, November 2023"),
    "m3-ultra": _apple("M3 Ultra", 512, 819, "technical specifications of the Mac Studio, March 2025"),
    "m4": _apple("M4", 32, 120, "press release of 30 October 2024"),
    "m4-pro": _apple("M4 Pro", 64, 273, "press release of 30 October 2024"),
    "m4-max": _apple("M4 Max", 128, 546, "press release of 30 October 2024"),
    "m5": _apple("M5", 32, 153, "press release of 15 October 2025"),
    "m5-pro": _apple("M5 Pro", 64, 307, "press release of 3 March 2026"),
    "m5-max": _apple("M5 Max", 128, 614, "press release of 3 March 2026"),
    "t4": _nvidia("T4", 16, 320, "T4 product brief and data sheet", 8.1, 65),
    "v100": _nvidia("V100 SXM2", 32, 900, "V100 data sheet", 15.7, 125),
    "a10": _nvidia("A10", 24, 600, "A10 data sheet", 31.2, 125, 62.5),
    "l4": _nvidia("L4", 24, 300, "L4 data sheet, without sparsity", 30.3, 121, 60),
    "l40s": _nvidia("L40S", 48, 864, "L40S data sheet, without sparsity", 91.6, 362, 183),
    "a100-40": _nvidia("A100 40GB", 40, 1555, "A100 data sheet", 19.5, 312, 156),
    "a100": _nvidia("A100 80GB", 80, 2039, "A100 data sheet, SXM", 19.5, 312, 156),
    "h100": _nvidia("H100", 80, 3350, "H100 data sheet, SXM, without sparsity", 67, 989.5, 494.5),
    "h200": _nvidia("H200", 141, 4800, "H200 data sheet, SXM, without sparsity", 67, 989.5, 494.5),
    "rtx-3090": _nvidia("GeForce RTX 3090", 24, 936, "GA102 architecture whitepaper", 35.6, 71, 35.6),
    "rtx-4090": _nvidia("GeForce RTX 4090", 24, 1008, "Ada architecture whitepaper", 82.6, 165.2, 82.6),
    "rtx-5090": _nvidia("GeForce RTX 5090", 32, 1792, "RTX Blackwell architecture whitepaper", 104.8, 209.5, 104.8),
}
"""Devices by the names that a user gives."""


QUOTED = (
    *("m1", "m1-pro", "m1-max", "m1-ultra", "m4-pro", "m4-max", "m5-pro", "m5-max"),
    *("t4", "v100", "a10", "l4", "l40s", "a100-40", "a100", "h100", "rtx-3090", "rtx-4090"),
)
"""Of these, memory, bandwidth and what rates others quote were compared with articles, shops' lists and comparisons of
cards, on 30 November 2026: they agree within 1 %."""

MAKERS = re.compile(r"^(nvidia|apple|geforce|tesla)-")
SIZE = re.compile(r"[0-9]+ ?G[Bi]")
"""What a driver's name of a device says of its memory."""
APART = 0.12
"""A driver counts so much less than the memory that a device is sold with, at the most."""


def find(name: str) -> Device:
    """The device of a name. Raises UserError, with the nearest, where there is none."""
    key = re.sub(r"[ _]+", "-", name.strip().lower())
    while MAKERS.match(key):
        key = MAKERS.sub("", key)
    if key not in DEVICES:
        raise UserError(
            f"unknown device {name!r}{suggest(key, DEVICES)}; known: {', '.join(DEVICES)}; of any other, say how much "
            "memory it has",
            arguments=("device", "memory"),
        )
    return DEVICES[key]


def recognised(text: str, memory: int | None = None) -> Device | None:
    """The device that a driver names, as ``NVIDIA A100-SXM4-80GB``, with so many bytes; None: it is none of these.

    Every word of its name is there and no other model's: an A100 is no A10, an RTX 4090 Laptop GPU no RTX 4090.
    """
    words = _words(text)
    fitting = [
        device
        for device in DEVICES.values()
        if _words(device.name) == words and (memory is None or 1 - APART <= memory / device.memory <= 1 + APART)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _words(name: str) -> set[str]:
    """What a name says of a model: not its maker, its socket or the size of its memory."""
    found = re.split(r"[ -]+", SIZE.sub("", name).lower())
    return {word for word in found if word} - UNSAID


UNSAID = {"nvidia", "apple", "geforce", "tesla", "sxm", "sxm2", "sxm3", "sxm4", "sxm5", "hbm2", "hbm3", "hbm3e"}
"""A card for PCIe is another model, and slower."""
