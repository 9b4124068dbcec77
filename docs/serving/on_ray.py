"""Copies of the server on Ray Serve: each is the whole of it, in a process of its own, and Ray deals out the requests.

    pip install 'mlx-peft[serve,torch]' 'ray[serve]'
    python on_ray.py FOLDER --copies 2                       # on this machine, at http://127.0.0.1:8000
    python on_ray.py FOLDER --copies 8 --ray ray://head:10001    # on a cluster whose machines all have the folder

Ctrl-C ends it here. Batches form in each copy: a few copies with many requests each are better than many with few.
"""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import suppress
from typing import Any

from mlx_peft.studies.on_ray import cluster


def application(folder: str, backend: str) -> Any:
    """One copy: what ``mlx-peft serve FOLDER`` serves. Called in the process of the copy, and back once it is warm."""
    from mlx_peft.serve.app import create_app
    from mlx_peft.serve.engine import Engine
    from mlx_peft.serve.opening import opened
    from mlx_peft.serve.settings import LOOPBACK, Settings

    settings = Settings(hosts=LOOPBACK)  # as Ray's proxy listens on no other; behind one, the name that it is called by
    served, notes = opened(folder, backend)
    engine = Engine(served, settings)
    app = create_app(engine, settings)
    engine.start().result()
    print(*notes, *engine.notes, f"serving {', '.join(served.names[:10])}", sep="\n")
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1, help="of each copy")
    parser.add_argument("--backend", choices=("mlx", "torch"), default="torch")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--ray", default="local", metavar="ADDRESS", help="of a cluster; local: one on this machine")
    options = parser.parse_args()

    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a busy machine takes longer than Ray's five
    with cluster(options.ray):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Starts the copies, and is back when it is told to end."""
    from ray import serve  # once it is connected

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    with suppress(KeyboardInterrupt):
        with suppress(TimeoutError):  # on a busy machine Ray's proxy is there later than the minute that it is given
            serve.start(http_options={"host": "127.0.0.1", "port": options.port})

        @serve.deployment(
            num_replicas=options.copies,
            ray_actor_options={"num_cpus": options.cpus},
            max_ongoing_requests=256,  # as many as a copy's own queue has images: batches form there
            graceful_shutdown_timeout_s=45,
            health_check_timeout_s=60,
        )
        @serve.ingress(lambda: application(options.folder, options.backend))
        class Copy:
            pass

        serve.run(Copy.bind(), name="mlx-peft", route_prefix="/")
        print(f"{options.copies} copies at http://127.0.0.1:{options.port}", flush=True)
        signal.pause()
    serve.shutdown()


if __name__ == "__main__":
    main()
