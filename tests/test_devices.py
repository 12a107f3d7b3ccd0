import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from aircraft_sae.devices import side_by_side


@pytest.fixture(params=(1, 3))
def cores(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # as it was found
    torch.set_num_threads(before)


def test_results_come_in_order_from_as_many_threads_as_cores(cores):
    held, most, running = threading.Lock(), [0], [0]
    together = threading.Barrier(1 if torch.cuda.is_available() else cores)

    def work(item):
        with held:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait(20)  # nobody gets past it alone
        with held:
            running[0] -= 1
        return item**2, torch.get_num_threads()

    found = list(side_by_side(work, range(12)))
    assert [square for square, _ in found] == [item**2 for item in range(12)]
    assert most[0] == together.parties and {n for _, n in found} == ({1} if together.parties > 1 else {cores})


def test_fewer_items_than_cores_share_them():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for items, threads in (([0], 4), ([0, 1], 2), (range(9), 1)):
            wanted = 4 if torch.cuda.is_available() else threads
            assert set(side_by_side(lambda _: torch.get_num_threads(), items)) == {wanted}
    finally:
        torch.set_num_threads(before)


def test_few_items_are_taken_ahead(cores):
    taken = []
    items = (taken.append(i) or i for i in range(10**9))
    results = side_by_side(lambda item: item, items)
    assert [next(results) for _ in range(5)] == list(range(5)) and len(taken) <= 5 + 2 * cores + 1
    results.close()


def test_an_error_is_raised_in_its_turn_and_ends_the_rest(cores):
    done = []

    def work(item):
        if item == 4:
            raise ValueError("the fourth")
        done.append(item)
        return item

    got = []
    with pytest.raises(ValueError, match="the fourth"):
        for result in side_by_side(work, range(10**9)):
            got.append(result)
    assert got == [0, 1, 2, 3] and len(done) < 20


def test_what_runs_side_by_side_does_not_spread_further(cores):
    inner = [set(names) for names in side_by_side(lambda _: list(side_by_side(_thread, range(4))), range(3))]
    assert all(len(names) == 1 for names in inner)


def _thread(_):
    return threading.get_ident()


def test_the_benchmark_for_gpus_runs_in_small(tmp_path):
    """On the day that a GPU is there, nothing else may stop it."""
    file, script = tmp_path / "numbers.json", Path(__file__).parent / "benchmarks" / "gpu.py"
    command = [sys.executable, "-W", "ignore", script, "--tiny", "--results", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) >= 56 and "failed" not in done.stdout
    assert all(name in done.stdout and row["ms"] > 0 for name, row in rows.items())  # of what is not finite, no "ms"
