"""How long a report of two thousand runs takes: ``python tests/report/two_thousand.py FOLDER``.

Makes the runs below FOLDER, where they are not there yet: 40 configurations of LoRA and of quantised LoRA on five data
sets, ten seeds of each, with the answers on 500 test images; and damages one. Then reports on them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from made_runs import experiment, make

SETS = ("cifar10", "cifar100", "dtd", "flowers102", "pets")
RANKS, BITS, SEEDS = range(1, 11), (None, 8, 4, 2), range(10)
IMAGES = 500


def runs(folder: Path) -> None:
    for at, (dataset, rank, bits, seed) in enumerate(product(SETS, RANKS, BITS, SEEDS)):
        coded = None if bits is None else {"bits": bits, "group_size": 64}
        config = experiment({"name": "lora", "rank": rank}, dataset, seed, quantize=coded)
        share = 0.5 + 0.02 * rank - (0 if bits is None else 0.1 / bits)
        make(folder / dataset / f"rank={rank}-bits={bits}-seed={seed}", config, share, images=IMAGES,
             adapter=20_000 * rank, peak=400_000_000 + 10**7 * (bits or 32), seconds=20.0 + rank)  # fmt: skip
        print(f"\rmade {at + 1:,} runs", end="", flush=True)
    print()
    (folder / SETS[0] / "rank=1-bits=None-seed=0" / "result.json").write_text("{")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not folder.exists():
        runs(folder / "runs")
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mlx_peft", "report", folder / "runs", "--out", folder / "out"],
                          stdout=subprocess.DEVNULL)  # fmt: skip
    seconds, size = time.perf_counter() - begun, (folder / "out" / "report.html").stat().st_size
    print(f"{seconds:.1f} s, status {done.returncode}, report.html {size / 1e6:.1f} MB")
