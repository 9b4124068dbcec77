"""A server of a hundred adapters under 64 clients that hold every answer against the offline bank's.

    python tests/load/serving.py WORK > experiments/results/serving.md

WORK holds what ``made.py`` makes. Four parts: as many requests as one that answers image by image takes; as many as a
server with micro-batches takes; for five minutes 70 % of these, by clients that know nothing of one another; and the
same by clients that all ask at the same moments. In the last two adapters are loaded and let go, and a stranger sends
what nobody should. Clients and server share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from mlx_peft.checks.busy import Others

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LOAD = 0.7
"""Of what the server can take, in the long part."""
PARTS = ("single", "batches", "long", "together")
TOKEN = secrets.token_urlsafe(24)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **more}


@dataclass
class Served:
    """A server of its own process, and its resident memory, in bytes, second by second."""

    process: subprocess.Popen[bytes]
    address: str
    memory: list[int] = field(default_factory=list)

    def watch(self) -> None:
        own = psutil.Process(self.process.pid)
        while self.process.poll() is None:
            try:
                self.memory.append(own.memory_info().rss)
            except psutil.Error:
                return
            time.sleep(1)


@contextmanager
def server(options: argparse.Namespace, max_batch: int | None) -> Iterator[Served]:
    """Begun, ready, and at the end told to stop, which it does with exit status 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable,
        "-m",
        "mlx_peft",
        "serve",
        str(options.work / "adapters"),
        "--backend",
        "torch",
        "--port",
        str(port),
    ]
    words += [*(["--max-batch", str(max_batch)] if max_batch else []), *options.serve]
    log = (options.work / f"server-{max_batch or 'batches'}.log").open("wb")
    began = Served(
        subprocess.Popen(words, env=environment(MLX_PEFT_ADMIN_TOKEN=TOKEN), stdout=log, stderr=log),
        f"http://127.0.0.1:{port}",
    )
    try:
        _until_ready(began, Path(log.name))
        threading.Thread(target=began.watch, daemon=True).start()
        yield began
        began.process.send_signal(signal.SIGTERM)
        if (status := began.process.wait(60)) != 0:
            sys.exit(f"the server ended with status {status}: {log.name}")
    finally:
        began.process.kill()
        began.process.wait()
        log.close()


def _until_ready(began: Served, log: Path) -> None:
    from mlx_peft.client import Client

    client = Client(began.address)
    for _ in range(600):
        if began.process.poll() is not None:
            sys.exit(f"the server ended before it was ready:\n{log.read_text()}")
        if client.ready():
            return
        time.sleep(0.2)
    sys.exit("the server was not ready within two minutes")


def clients(
    options: argparse.Namespace,
    address: str,
    seconds: int,
    rate: float = 0.0,
    others: bool = False,
    together: bool = False,
) -> dict[str, Any]:
    """What 64 clients found in so many seconds; with ``others``, beside whoever loads adapters and the stranger."""
    out = options.work / "found.json"
    out.unlink(missing_ok=True)
    users = str(64 + 2 * others)
    words = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(HERE / "locustfile.py"),
        "--headless",
        "--only-summary",
        "-H",
        address,
    ]
    words += ["-u", users, "-r", users, "-t", f"{seconds}s", "--stop-timeout", "30", "--loglevel", "WARNING"]
    wanted = {
        "LOAD_WORK": options.work,
        "LOAD_OUT": out,
        "LOAD_RATE": rate,
        "LOAD_TOKEN": TOKEN,
        "LOAD_OTHERS": int(others),
        "LOAD_TOGETHER": int(together),
    }
    done = subprocess.run(
        words, env=environment(**{key: str(value) for key, value in wanted.items()}), stdout=sys.stderr
    )
    if not out.exists():
        sys.exit(f"locust ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(out.read_text())
    say(json.dumps(found, indent=1))
    return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The four parts."""
    with server(options, 1) as one:
        clients(options, one.address, options.warm)
        single = clients(options, one.address, options.saturate)
    with server(options, None) as many:
        clients(options, many.address, options.warm)
        batches = clients(options, many.address, options.saturate)
        start = len(many.memory)
        rate = LOAD * batches["per_second"]
        long = clients(options, many.address, options.seconds, rate, others=True)
        memory = many.memory[start:]
        together = clients(options, many.address, options.saturate, rate, others=True, together=True)
    return {"single": single, "batches": batches, "long": long, "together": together, "memory": memory}


def table(found: dict[str, Any], options: argparse.Namespace, machine: str) -> str:
    """The page."""
    single, batches, long, together = parts = [found[name] for name in PARTS]

    def row(name: str, part: dict[str, Any]) -> str:
        took = part["milliseconds"]
        return (
            f"| {name} | {part['per_second']:.1f} | {part['answers']} | {took['0.5']:.0f} | {took['0.9']:.0f} | "
            f"{took['0.99']:.0f} | {took['1.0']:.0f} | {took['0.99'] / took['0.5']:.2f} |"
        )

    memory = found["memory"]
    sixth = max(1, len(memory) // 6)
    early, late = fmean(memory[sixth : 2 * sixth]) / 2**20, fmean(memory[-sixth:]) / 2**20
    furthest = {kind: max(part["furthest"][kind] for part in parts) for kind in long["furthest"]}
    hostile = {key.split()[1]: n for key, n in long["counts"].items() if key.startswith("hostile")}
    changes = {key: n for key, n in long["counts"].items() if key.startswith(("PUT", "DELETE"))}
    faults = sum(part["faults"] for part in parts)
    return f"""| 64 clients | requests/s | images answered | p50, ms | p90, ms | p99, ms | longest, ms | p99 / p50 |
| --- | --: | --: | --: | --: | --: | --: | --: |
{row("image by image, saturated", single)}
{row("micro-batches, saturated", batches)}
{row(f"micro-batches, {LOAD:.0%} of that, {options.seconds} s", long)}
{row(f"the same, all clients at the same moments, {options.saturate} s", together)}

- Micro-batches beside image by image: {batches["per_second"] / single["per_second"]:.2f} times the requests a second.
- Answers that were lost, late or not the offline bank's: {faults}. The furthest from it: {furthest["probability"]:.1e}
  of a probability, {furthest["features"]:.1e} of the largest feature (allowed: 1e-5).
- Loads and unloads in the long part: {", ".join(f"{n} times {key}" for key, n in sorted(changes.items()))}.
- Hostile requests in it, by status: {", ".join(f"{n} times {key}" for key, n in sorted(hostile.items()))}.
- The server's resident memory, mean of the second sixth and of the last: {early:.0f} and {late:.0f} MiB
  ({late / early - 1:+.1%}).

{platform.machine()}, {machine}; Python {platform.python_version()}, torch {version("torch")},
locust {version("locust")}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--saturate", type=int, default=30)
    parser.add_argument("--warm", type=int, default=8)
    parser.add_argument("--serve", action="append", default=[], help="a word that the server is started with besides")
    options = parser.parse_args()
    subprocess.run([sys.executable, HERE / "made.py", options.work], env=environment(), check=True)
    with Others(anyway=True) as others:
        found = measured(options)
    (options.work / "serving.json").write_text(json.dumps(found))
    print(table(found, options, str(others)))
    if any(found[part]["faults"] for part in PARTS):
        sys.exit(1)


if __name__ == "__main__":
    main()
