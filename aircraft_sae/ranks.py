"""Several processes (ranks), started by torchrun, that share the work of one stage.

In a single process, and inside `alone`, a rank's share is everything. Only this module and the training of networks
(DistributedDataParallel) use torch.distributed. torch is imported only where used: the notebook runner needs none.
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

PATIENCE = timedelta(days=2)  # the other ranks wait while the first renders or merges
_rank, _n_ranks, _alone = 0, 1, 0


def join() -> None:
    """Connect to the other ranks that torchrun started, if any: over NCCL with one GPU each, else over Gloo."""
    global _rank, _n_ranks
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    _rank, _n_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()


def leave() -> None:
    """Disconnect, as the last thing that this process does."""
    if _n_ranks > 1:
        import torch

        torch.distributed.destroy_process_group()


def n_ranks() -> int:
    """Number of ranks that share the work."""
    return 1 if _alone else _n_ranks


def rank() -> int:
    """This rank's number, from 0."""
    return 0 if _alone else _rank


def label() -> str:
    """The prefix of this rank's log lines; empty in a single process."""
    return f"rank {rank()} of {n_ranks()} on {socket.gethostname()}: " if n_ranks() > 1 else ""


def say(text: str) -> None:
    """Print a line to stderr, on the first rank only; on stdout it would end up in the notebooks' outputs."""
    if rank() == 0:  # one write per line, since stages may run in parallel
        print(f"{label()}{text}\n", end="", file=sys.stderr, flush=True)


def share(n: int, unit: int = 1) -> slice:
    """This rank's slice of n items; it starts at a multiple of `unit`."""
    first, end = (n // unit * each // n_ranks() * unit for each in (rank(), rank() + 1))
    return slice(first, n if rank() == n_ranks() - 1 else end)


def missing_share(missing: Sequence[bool]) -> list[int]:
    """This rank's share of the indices that the first rank finds missing."""
    if n_ranks() > 1:
        import torch

        add(found := torch.tensor(missing).long() * (rank() == 0))
        missing = found.tolist()
    indices = [i for i, each in enumerate(missing) if each]
    return indices[share(len(indices))]


@contextmanager
def alone() -> Iterator[None]:
    """In this context, the process works by itself while the other ranks wait."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def on_all_ranks(make: Callable) -> Callable:
    """Mark a stage's `make` as run by all ranks, each on its share; an unmarked one runs on the first rank only."""
    make.together = True
    return make


def add(*tensors: "Tensor") -> None:
    """Sum each tensor over all ranks, in place."""
    if n_ranks() > 1:
        from torch.distributed import all_reduce

        from aircraft_sae.devices import device

        for each in tensors:
            all_reduce(total := each.to(device()))
            each.copy_(total)


def gather(own: "Tensor") -> "Tensor":
    """Concatenate the ranks' rows (n, …) in order of rank; n may differ between ranks."""
    if n_ranks() == 1:
        return own
    import torch

    from aircraft_sae.devices import device

    add(sizes := torch.nn.functional.one_hot(torch.tensor(rank()), n_ranks()) * len(own))
    padded = own.new_zeros((int(sizes.max()), *own.shape[1:]), device=device())
    padded[: len(own)] = own
    sent = padded.flatten().view(torch.uint8)  # gloo has no float16
    received = [torch.empty_like(sent) for _ in range(n_ranks())]
    torch.distributed.all_gather(received, sent)
    rows = [each.view(own.dtype).view(padded.shape)[:n] for each, n in zip(received, sizes.tolist(), strict=True)]
    return torch.cat(rows).to(own.device)


def broadcast(number: int) -> int:
    """Return the first rank's `number` on every rank; all wait for it."""
    if n_ranks() == 1:
        return number
    import torch

    add(sent := torch.tensor(int(number) if rank() == 0 else 0))
    return int(sent)


def wait() -> None:
    """Wait until all ranks are here."""
    broadcast(0)


@contextmanager
def first() -> Iterator[None]:
    """In this context, the first rank goes before the others."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def ended(problem: Exception) -> bool:
    """Whether an error means that another rank has ended."""
    words = "closed by peer", "reset by peer", "Broken pipe", "gloo", "remote process exited"
    lost = type(problem).__name__ in ("DistNetworkError", "DistStoreError")
    return n_ranks() > 1 and isinstance(problem, RuntimeError) and (lost or any(word in str(problem) for word in words))
