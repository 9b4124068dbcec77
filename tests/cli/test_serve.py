"""``serve`` says what is wrong before anything is loaded."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from mlx_peft.cli import serve


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["x", "--admin-token", "short"], "--admin-token: a token should be 16 or more"),
        (["x", "--token", "no-such-file"], "no-such-file: cannot be read"),
        (["x", "--adapters-budget", "much"], "--adapters-budget: 'much' is no size"),
        (["x", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["x", "--max-batch", "0"], "--max-batch"),
        (["x", "--port", "70000"], "--port"),
        (["vit-base", "--port", "0"], "vit-base"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(command, arguments: list[str], reason: str) -> None:
    done = command("serve", *arguments, "--backend", "torch", *([] if "--port" in arguments else ["--port", "0"]))
    assert done.exit_code == 2, done.output
    assert reason in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_to_be(command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = command("serve", "x", "--port", number)
    assert done.exit_code == 2 and f"port {number}" in done.stderr and "--port PORT" in done.stderr


def test_a_recipe_that_takes_long_is_to_be_trained_first(command) -> None:
    done = command("serve", "deit-small-lora-cifar10", "--port", "0")
    assert done.exit_code == 2 and "train" in done.stderr


def test_packages_that_are_missing_are_named(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "NEEDED", ("fastapi", "no_such_package"))
    assert importlib.util.find_spec("no_such_package") is None
    done = command("serve", "x")
    assert done.exit_code == 2 and "no_such_package" in done.stderr and "mlx-peft[serve]" in done.stderr


def test_who_serves_everybody_is_told_so() -> None:
    from mlx_peft.serve.settings import Settings

    assert serve._warnings("0.0.0.0", Settings()) and not serve._warnings("127.0.0.1", Settings())
