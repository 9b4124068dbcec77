"""What MLX wants of a thread that computes: a stream before its first program, and no stream after its end."""

from __future__ import annotations

import threading

import mlx.core as mx

_own = threading.local()


class _Streams:
    """The streams of a thread that is not the main one, which go when it ends, with all that it has of its own.

    One that is left behind may abort the whole process at its end.
    """

    def __init__(self) -> None:
        mx.default_stream(mx.default_device())  # without one, the first program of a thread is compiled twice

    def __del__(self) -> None:
        mx.clear_streams()


def settle() -> None:
    """To be called before a thread that may be any computes."""
    if threading.current_thread() is not threading.main_thread() and "streams" not in _own.__dict__:
        _own.streams = _Streams()
