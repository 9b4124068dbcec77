"""How much of the machine others take while something is timed; with too much of it no table is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from machines import PROCESSORS, Machine

from mlx_peft.checks import busy
from mlx_peft.checks.busy import BEFORE, QUIET
from mlx_peft.core.errors import UserError

LITTLE, MUCH = QUIET / 2, 2 * QUIET


def test_what_others_take_is_counted_and_what_this_process_does_is_not() -> None:
    machine = Machine(LITTLE)
    others = machine.others()
    with others:
        machine.wait(10.0)
    machine.share = 0.0
    with others:
        machine.wait(30.0)
    assert others.share == pytest.approx(LITTLE / 4)
    assert str(others) == f"{PROCESSORS} CPUs, of which other processes took 1%"
    assert others.facts() == {"cpus": PROCESSORS, "others_share": others.share}
    assert machine.waits == [BEFORE, 10.0, 30.0], "it is looked at before the first alone"


def test_a_busy_machine_is_refused_before_anything_is_timed_and_whoever_is_busy_is_named() -> None:
    others = Machine(MUCH).others()
    with pytest.raises(UserError) as refused, others:
        raise AssertionError("something was timed")
    assert str(refused.value).startswith(f"other processes take 20% of the {PROCESSORS} CPUs, baker (8) ")
    assert "end them or wait for them" in str(refused.value) and refused.value.arguments == ("busy",)


def test_so_it_is_where_others_began_meanwhile() -> None:
    machine = Machine(0.0)
    with pytest.raises(UserError, match=r"took 20% of .* while it was measured: nothing is recorded"), machine.others():
        machine.share = MUCH
        machine.wait(10.0)


def test_what_failed_is_told_of_and_not_the_machine() -> None:
    machine = Machine(0.0)
    with pytest.raises(ValueError, match="its own"), machine.others():
        machine.share = MUCH
        machine.wait(10.0)
        raise ValueError("its own")


def test_anyway_nothing_is_waited_for_and_the_share_is_known() -> None:
    machine = Machine(MUCH)
    others = machine.others(anyway=True)
    with others:
        machine.wait(10.0)
    assert machine.waits == [10.0] and others.share == pytest.approx(MUCH)


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


TICKS = 0.03
"""Seconds: Linux counts a process's time in hundredths, rounded down, of each of three."""


BURN = "import time\nwhile time.process_time() < 0.15: pass"
"""A program that takes a processor for a bit more than a tenth of a second, which is counted in hundredths."""


def test_own_time_is_that_of_this_process_and_of_all_it_has_started_ended_or_not() -> None:
    before = busy.read()
    burn(0.1)
    subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
    with subprocess.Popen([sys.executable, "-S", "-c", f"{BURN}\ntime.sleep(600)"]) as living:
        try:
            while sum(psutil.Process(living.pid).cpu_times()[:2]) < 0.1:
                time.sleep(0.01)
            after = busy.read()
        finally:
            living.kill()
    assert after.own - before.own >= 0.3 - TICKS
    assert after.taken - before.taken >= 0.3 - TICKS and after.wall > before.wall
    assert {number for number, _ in after.each}.isdisjoint({os.getpid(), living.pid})
