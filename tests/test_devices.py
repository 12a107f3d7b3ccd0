"""What runs side by side: order, number of threads, errors."""

import threading

import pytest
import torch

from aircraft_sae.devices import run_parallel


@pytest.fixture(params=(1, 3))
def cores(request, set_threads):
    set_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param, "not restored"


def test_as_many_items_as_cores_run_at_once_and_results_are_in_order(cores):
    together = threading.Barrier(1 if torch.cuda.is_available() else cores)

    def work(item):
        together.wait(20)  # breaks if fewer run at once
        return item**2, torch.get_num_threads()

    squares, threads = zip(*run_parallel(work, range(12)), strict=True)
    assert squares == tuple(item**2 for item in range(12))
    assert set(threads) == {1 if together.parties > 1 else cores}


@pytest.mark.parametrize(("n_items", "threads"), [(1, 4), (2, 2), (9, 1)])
def test_fewer_items_than_cores_share_the_cores(n_items, threads, set_threads):
    set_threads(4)
    wanted = 4 if torch.cuda.is_available() else threads
    assert set(run_parallel(lambda _: torch.get_num_threads(), range(n_items))) == {wanted}


def test_few_items_are_read_ahead_and_an_error_comes_in_its_turn(cores):
    read, got = [], []

    def work(item):
        if item == 4:
            raise ValueError("the fourth")
        return item

    with pytest.raises(ValueError, match="the fourth"):
        for result in run_parallel(work, (read.append(i) or i for i in range(10**9))):
            got.append(result)
    assert got == [0, 1, 2, 3] and len(read) <= 5 + 2 * cores + 1


def test_nested_calls_start_no_further_threads(cores):
    inner = run_parallel(lambda _: {*run_parallel(lambda _: threading.get_ident(), range(4))}, range(3))
    assert all(len(threads) == 1 for threads in inner)
