"""On a CPU, torch takes parts of a batch through the network beside one another, each core its own."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from banks import METHODS, SAME, SIDES, base_of, folder_of, network, pixels

from mlx_peft.config.methods import LoRA
from torch_ref import threads


@pytest.fixture
def two():
    """torch has two threads, as on a machine with two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("count", "most", "least", "sizes"),
    [
        (32, 13, 1, [8, 8, 8, 8]),  # as many for each of two threads, and none above 13
        (32, 160, 5, [16, 16]),
        (27, 13, 1, [7, 7, 7, 6]),
        (8, 160, 5, [8]),  # four are too few for a thread
        (3, 2, 2, [2, 1]),
        (1, 1, 1, [1]),
        (0, 13, 1, [0]),
    ],
)
def test_each_thread_gets_as_many_images_where_there_are_enough(two, count, most, least, sizes):
    parts = threads.parts(count, (most, least))
    assert [image for part in parts for image in range(count)[part]] == [*range(count)]
    assert [len(range(count)[part]) for part in parts] == sizes


def test_one_thread_computes_as_many_at_once_as_fit():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert threads.parts(32, (13, 1)) == [slice(0, 11), slice(11, 22), slice(22, 33)]
        found = threads.beside(lambda part: threading.current_thread(), [slice(0, 1)] * 3)
        assert found == [threading.current_thread()] * 3
    finally:
        torch.set_num_threads(before)


def test_parts_beside_one_another_have_a_thread_each_in_which_torch_computes_alone(two):
    both = threading.Barrier(2, timeout=60)

    def compute(part: slice) -> tuple[int, int]:
        both.wait()  # nobody passes before both are there
        return part.start, torch.get_num_threads()

    assert threads.beside(compute, [slice(start, start + 1) for start in range(4)]) == [(n, 1) for n in range(4)]
    assert torch.get_num_threads() == 2
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_fewer_parts_than_threads_are_left_to_all_of_them(two):
    assert threads.beside(lambda part: torch.get_num_threads(), [slice(0, 1)]) == [2]


@pytest.mark.parametrize(("count", "sizes"), [(32, [16, 16]), (10, [5, 5]), (9, [9]), (1, [1]), (0, [0])])
def test_what_is_not_divided_is_computed_by_as_many_threads_as_are_worth_it_each_alone(two, count, sizes):
    assert [len(range(count)[part]) for part in threads.parts(count, (160, 5), divided=False)] == sizes
    asked: list[int] = []

    def compute(part: slice) -> np.ndarray:
        asked.append(torch.get_num_threads())
        return np.arange(count)[part]

    assert threads.answered(compute, count, (160, 5), divided=False).tolist() == [*range(count)]
    assert asked == [1] * len(sizes)


def test_a_bank_of_small_images_divides_nothing_and_one_of_large_images_does(two, tmp_path, monkeypatch):
    folder_of([LoRA(rank=2)], tmp_path, base_of())
    bank = SIDES["torch"].load_adapters(network("torch"), tmp_path)
    asked: list[bool] = []
    beside = threads.answered
    monkeypatch.setattr(threads, "answered", lambda *own, divided: asked.append(divided) or beside(*own, divided))
    for rows in ((160, 5), (13, 1), None):
        bank._passes._mixer.rows = rows
        bank.features(pixels(1), bank.names[0])
    assert asked == [False, True, True]


def test_what_goes_wrong_in_a_part_is_raised(two):
    def compute(part: slice) -> None:
        if part.start == 1:
            raise MemoryError("of one part")

    with pytest.raises(MemoryError, match="of one part"):
        threads.beside(compute, [slice(0, 1), slice(1, 2)])


def test_a_forked_process_has_threads_of_its_own(two):
    """Those of the process that it was forked from are not there, and it would wait for them for ever."""
    parts = [slice(0, 1), slice(1, 2)]
    assert threads.beside(lambda part: 1, parts) == [1, 1]
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        os._exit(0 if threads.beside(lambda part: part.start, parts) == [0, 1] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_mixed_batch_in_parts_answers_as_at_once(two, tmp_path, monkeypatch):
    adapters = folder_of([method for several in METHODS.values() for method in several], tmp_path, base_of())
    names = [*adapters, None, *list(adapters)[:3], None]
    np.random.default_rng(3).shuffle(names)
    banks = [SIDES["torch"].load_adapters(network("torch"), tmp_path) for _ in range(2)]
    banks[0]._passes._mixer.rows = (len(names), len(names))
    banks[1]._passes._mixer.rows = (3, 1)
    asked: list[int] = []
    beside = threads.beside
    monkeypatch.setattr(
        threads, "beside", lambda compute, own, divided: asked.append(len(own)) or beside(compute, own, divided)
    )
    together, parted = (bank.logits(pixels(len(names)), names) for bank in banks)
    assert max(asked) > 2  # several went side by side
    for found, expected, name in zip(parted, together, names, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=SAME, err_msg=str(name))
