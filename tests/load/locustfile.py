"""Locust's users: 64 clients that hold every answer against the offline bank's, one that loads adapters and lets them
go, and one that sends what nobody should. ``tests/load/serving.py`` runs it; by hand:

    LOAD_WORK=WORK LOAD_TOKEN=TOKEN locust -f tests/load/locustfile.py --headless -u 66 -r 66 -t 30s -H http://127.0.0.1:8000

``LOAD_RATE``: requests a second of all clients together, each of which asks at times of its own; without, each asks
again as soon as it has an answer. ``LOAD_TOGETHER=1``: all of them ask at the same moments.
``LOAD_OUT``: a file for what was found, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from load import hostile
from locust import FastHttpUser, constant, constant_throughput, events, task

from mlx_peft.client import multipart

CLIENTS = 64
SAME = 1e-5
"""Of a probability, absolute; of features, of their largest. Sums in another order, a few roundings a layer."""
DEEPEST = 12

WORK = Path(os.environ["LOAD_WORK"])
RATE = float(os.environ.get("LOAD_RATE", "0"))
TOKEN = os.environ.get("LOAD_TOKEN", "")
TOGETHER = os.environ.get("LOAD_TOGETHER") == "1"
OTHERS = os.environ.get("LOAD_OTHERS", "1") == "1"
NAMES = json.loads((WORK / "made.json").read_text())["names"]
GUESTS = [name for name in NAMES if name.startswith("guest")]
PHOTOS = [file.read_bytes() for file in sorted((WORK / "photos").iterdir())]
EXPECTED = dict(np.load(WORK / "expected.npz"))


class Found:
    """What came of all requests."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.furthest = {"probability": 0.0, "features": 0.0}
        self.first = self.last = 0.0

    def took(self, seconds: float) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last - seconds
        self.seconds.append(seconds)

    def fault(self, what: str) -> str:
        self.wrong.append(what)
        return what

    def differs(self, kind: str, by: float) -> bool:
        self.furthest[kind] = max(self.furthest[kind], by)
        return not by <= SAME


FOUND = Found()


def by_itself(client: Any) -> float:
    """Seconds until a client asks again that knows nothing of others: what all of them ask comes as a Poisson process.
    One that was answered later than that asks at once."""
    now = time.perf_counter()
    client.due = max(now, getattr(client, "due", now) + client.random.expovariate(RATE / CLIENTS))
    return float(client.due - now)


def waiting() -> Any:
    if not RATE:
        return constant(0)
    return constant_throughput(RATE / CLIENTS) if TOGETHER else by_itself  # locust begins all of them at once


class Client(FastHttpUser):
    """Asks about photographs, and knows what should come back."""

    fixed_count = CLIENTS
    wait_time = waiting()
    numbers = iter(range(10**6))

    def on_start(self) -> None:
        self.random = random.Random(next(self.numbers))
        if RATE and not TOGETHER:
            time.sleep(by_itself(self))

    def ask(self, path: str, photos: list[int], names: list[str], **fields: str) -> Any:
        """The answer's results; None where a guest was away, which is no fault."""
        body, kind = multipart([PHOTOS[at] for at in photos], names or None, fields)
        began = time.perf_counter()
        with self.client.post(path, data=body, headers={"Content-Type": kind}, catch_response=True) as answer:
            FOUND.took(time.perf_counter() - began)
            FOUND.counts[f"{path} {answer.status_code}"] += 1
            if answer.status_code in (404, 503) and any(name in GUESTS for name in names):
                answer.success()  # let go, or read anew while this one waited: then it is asked again
                return self.ask(path, photos, names, **fields) if answer.status_code == 503 else None
            if answer.status_code != 200:
                answer.failure(FOUND.fault(f"{path}: {answer.status_code} {answer.text or answer.error}"))
                return None
            results = answer.json()["results"]
            if len(results) != len(photos):
                answer.failure(FOUND.fault(f"{path}: {len(results)} answers to {len(photos)} images"))
                return None
            FOUND.counts[f"{path} answers"] += len(results)
            return results

    def classify(self, count: int) -> None:
        photos = [self.random.randrange(len(PHOTOS)) for _ in range(count)]
        names = [self.random.choice(NAMES) for _ in range(count)]
        for photo, name, found in zip(
            photos, names, self.ask("/v1/classify", photos, names, top_k=str(DEEPEST)) or [], strict=False
        ):
            own = EXPECTED[name][photo]
            told = np.full(len(own), np.nan)
            for entry in found["classes"]:
                told[entry["index"]] = entry["probability"]
            if found["adapter"] != name or FOUND.differs("probability", float(np.abs(told - own).max())):
                FOUND.fault(f"{name}, photo {photo}: {found}, not {own}")

    @task(12)
    def one(self) -> None:
        self.classify(1)

    @task(3)
    def several(self) -> None:
        self.classify(self.random.randint(2, 4))

    @task(2)
    def embed(self) -> None:
        photo, name = self.random.randrange(len(PHOTOS)), self.random.choice([*NAMES, ""])
        for found in self.ask("/v1/embed", [photo], [name] if name else []) or []:
            own = EXPECTED[f"features/{name}"][photo]
            by = float(np.abs(np.array(found["embedding"]) - own).max() / np.abs(own).max())
            if (found["adapter"] or "") != name or FOUND.differs("features", by):
                FOUND.fault(f"features of {name}, photo {photo}, differ by {by}")


if OTHERS:

    class Admin(FastHttpUser):
        """Lets guests go, and has them read again."""

        fixed_count = 1
        wait_time = constant(0.5)

        @task
        def again(self) -> None:
            name = random.choice(GUESTS)
            for verb in ("DELETE", "PUT"):
                with self.client.request(
                    verb, f"/v1/models/{name}", name=f"{verb} /v1/models", headers={"Authorization": f"Bearer {TOKEN}"},
                    catch_response=True,
                ) as answer:  # fmt: skip
                    FOUND.counts[f"{verb} {answer.status_code}"] += 1
                    if not 200 <= answer.status_code < 300:
                        answer.failure(FOUND.fault(f"{verb} {name}: {answer.status_code} {answer.text}"))
                time.sleep(0.1)

    class Stranger(FastHttpUser):
        """Sends what nobody should."""

        fixed_count = 1
        wait_time = constant(0.25)
        requests = hostile.requests(NAMES[0])
        turns = iter(range(10**6))

        @task
        def send(self) -> None:
            one = self.requests[next(self.turns) % len(self.requests)]
            with self.client.request(
                one.verb,
                one.path,
                data=one.body,
                headers={"Content-Type": one.kind},
                name="hostile",
                catch_response=True,
            ) as answer:
                FOUND.counts[f"hostile {answer.status_code}"] += 1
                if 400 <= answer.status_code < 500:
                    answer.success()
                else:
                    answer.failure(FOUND.fault(f"{one.what}: {answer.status_code} {answer.error}"))


@events.quitting.add_listener
def written(environment: Any, **_: Any) -> None:
    """What was found, for whoever started this."""
    if "LOAD_OUT" not in os.environ:
        return
    seconds = np.array(FOUND.seconds or [np.nan])
    Path(os.environ["LOAD_OUT"]).write_text(json.dumps({
        "requests": len(FOUND.seconds),
        "per_second": len(FOUND.seconds) / (FOUND.last - FOUND.first or 1),
        "answers": sum(count for key, count in FOUND.counts.items() if key.endswith("answers")),
        "milliseconds": {str(q): float(1000 * np.quantile(seconds, q)) for q in (0.5, 0.9, 0.99, 1.0)},
        "counts": FOUND.counts, "wrong": FOUND.wrong[:20], "faults": len(FOUND.wrong), "furthest": FOUND.furthest,
    }))  # fmt: skip
