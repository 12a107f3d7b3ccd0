"""Several processes, started by torchrun, that work on one stage: each one's share, and what they exchange.

In one process, and within `alone`, the share is the whole, and what all have is one's own. Nothing else knows of
torch.distributed, but for the training of networks, which is DistributedDataParallel's. torch is imported when there
are several: the command, which only runs notebooks, does without it.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=2)  # while the first rank renders or merges, the others wait
_number, _n, _alone = 0, 1, 0


def join() -> None:
    """Meet the other ranks that torchrun has started, if any: over nccl on GPUs, one each, else over gloo."""
    global _number, _n
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    _number, _n = torch.distributed.get_rank(), torch.distributed.get_world_size()


def leave() -> None:
    """Part from the other ranks, all having come to the end."""
    global _number, _n
    if _n > 1:
        import torch

        torch.distributed.destroy_process_group()
        _number, _n = 0, 1


def n_ranks() -> int:
    """How many work together here."""
    return 1 if _alone else _n


def rank() -> int:
    """This one's number, from 0."""
    return 0 if _alone else _number


def label() -> str:
    """What a line in a log begins with: nothing in one process."""
    return f"rank {rank()} of {n_ranks()} on {socket.gethostname()}: " if n_ranks() > 1 else ""


def say(text: str) -> None:
    """A line on stderr, beside the progress bars and out of the notebooks' outputs; the first rank's alone."""
    if not rank():  # in one piece: stages are made side by side
        print(f"{label()}{text}\n", end="", file=sys.stderr, flush=True)


def share(n: int, unit: int = 1) -> slice:
    """This rank's part of n things in a row, which begins at a multiple of `unit`."""
    first, end = (n // unit * each // n_ranks() * unit for each in (rank(), rank() + 1))
    return slice(first, n if rank() == n_ranks() - 1 else end)


def mine(missing: Sequence[bool]) -> list[int]:
    """Indices that this rank makes: its share of those that the first rank finds missing before any begins."""
    numbers = [i for i, each in enumerate(missing) if each]
    if n_ranks() > 1:
        import torch

        found = torch.tensor(missing).long() * (rank() == 0)
        add(found)
        numbers = found.nonzero()[:, 0].tolist()
    return numbers[share(len(numbers))]


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process works by itself while the others wait."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def together(make: Callable) -> Callable:
    """Mark a make that all ranks run, each on its share; the first rank runs any other alone."""
    make.together = True
    return make


def add(*tensors: "Tensor") -> None:
    """Replace each tensor by its sum over all ranks."""
    if n_ranks() > 1:
        import torch

        for each in tensors:
            torch.distributed.all_reduce(there := each.to(_device()))
            each.copy_(there)


def gather(own: "Tensor") -> "Tensor":
    """The rows of all ranks, (n, …) of each, in order of the ranks."""
    if n_ranks() == 1:
        return own
    import torch

    add(sizes := torch.nn.functional.one_hot(torch.tensor(rank()), n_ranks()) * len(own))
    padded = own.new_zeros((int(sizes.max()), *own.shape[1:]), device=_device())
    padded[: len(own)] = own
    sent = padded.flatten().view(torch.uint8)  # gloo has no float16
    got = [torch.empty_like(sent) for _ in range(n_ranks())]
    torch.distributed.all_gather(got, sent)
    rows = (each.view(own.dtype).view(padded.shape)[:n] for each, n in zip(got, sizes.tolist(), strict=True))
    return torch.cat(list(rows)).to(own.device)


def wait() -> None:
    """Go on when all have come here."""
    tell(0)


@contextmanager
def first() -> Iterator[None]:
    """The first rank goes through it before the others."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def tell(number: int) -> int:
    """The first rank's number, on every rank; all wait for it."""
    if n_ranks() == 1:
        return number
    import torch

    add(said := torch.tensor(number if rank() == 0 else 0))
    return int(said)


def ended(problem: Exception) -> bool:
    """Whether an error means that another rank has ended."""
    if n_ranks() == 1 or not isinstance(problem, RuntimeError):
        return False
    import torch

    words = "closed by peer", "reset by peer", "Broken pipe", "gloo", "remote process exited"
    lost = torch.distributed.DistNetworkError, torch.distributed.DistStoreError
    return isinstance(problem, lost) or any(word in str(problem) for word in words)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
