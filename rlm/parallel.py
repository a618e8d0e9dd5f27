"""Several processes that train one model: each samples and learns a share, all stay the same.

    torchrun --standalone --nproc_per_node 2 -- train_grpo.py ...

Processes meet after sampling, to hand each other what they sampled and scored, and before an
update, to add up their gradients. Nothing is exchanged inside a forward or a backward. So it does
not matter how many micro-batches a process has, or whether it has any: none waits for one that
will not come. A meeting that does not come about is named by its stage, and ends the process.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from rlm.errors import InputError, RunError, command

TIMEOUT = 1800.0  # seconds that a process waits for the others
GRACE = 15.0  # seconds more, before a process that does not notice is ended from outside
DRIFT = 1e-3  # relative difference of a figure that must be the same everywhere

logger = logging.getLogger("rlm")


class World:
    """The processes of a run. rank: which of them this is, from 0. size: how many there are."""

    def __init__(self, rank: int = 0, size: int = 1, timeout: float = TIMEOUT):
        self.rank, self.size, self.timeout = rank, size, timeout

    @property
    def first(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def shard(self, work: Sequence) -> list:
        """Return this process's share of a list: every size-th, from its rank on."""
        return list(work[self.rank :: self.size])

    def unshard(self, mine: Iterable, stage: str) -> list:
        """Return the whole list of which each process gives its `shard(...)`."""
        parts = self.all_gather(list(mine), stage)
        whole: list = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def all_gather(self, value, stage: str) -> list:
        """Return the values of all processes, in order of rank. They are pickled on the way."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list = [None] * self.size
        self._meet(stage, lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value, stage: str):
        """Return the first process's value: of what hangs on a clock, a disk or free memory."""
        return self.all_gather(value if self.first else None, stage)[0]

    def check_same(self, value: float, stage: str) -> None:
        """RunError if a figure that must be the same in all processes is not."""
        values = self.all_gather(value, stage)
        low, high = min(values), max(values)
        if high - low > DRIFT * max(abs(low), abs(high)):  # False for NaN: that is no drift
            raise RunError(
                f"{stage}: the processes have drifted apart, from {low:.6g} to {high:.6g}; see "
                "that all run the same code and versions on the same kind of device"
            )

    def all_reduce(self, tensors: Sequence, stage: str) -> None:
        """Replace each float32 tensor by its sum over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])

        def exchange() -> None:
            dist.all_reduce(flat)
            if flat.is_cuda:
                torch.cuda.synchronize(flat.device)  # a failure has to show here

        self._meet(stage, exchange)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self, stage: str) -> None:
        """Return when all processes are here."""
        self.all_gather(None, stage)

    def _meet(self, stage: str, exchange: Callable[[], Any]) -> None:
        """Run an exchange; RunError naming its stage if the others do not come in time."""
        told = (
            f"process {self.rank} of {self.size}: the others did not come to '{stage}' within "
            f"{self.timeout:g} s, or one of them has ended; see what they printed, or give more "
            "time by --collective-timeout"
        )
        # Some backends wait for ever where they should fail: then this ends the process.
        guard = threading.Timer(self.timeout + GRACE, _end, [told])
        guard.daemon = True
        guard.start()
        try:
            exchange()
        except RuntimeError as error:
            atexit.unregister(_leave)  # it would wait for the others, too
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise RunError(f"{told} ({reason})") from None
        finally:
            guard.cancel()


_world = World()


def world() -> World:
    """Return the processes of this run: one, unless `join` found more."""
    return _world


def join(timeout: float = TIMEOUT) -> World:
    """Meet the processes that torchrun or accelerate has started beside this one, if any.

    They tell by RANK, LOCAL_RANK and WORLD_SIZE. On CUDA each takes its own device. Processes
    but the first print errors only.
    """
    global _world
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return _world
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        # gloo beside NCCL: what is handed over as objects lies on the CPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        atexit.register(_leave)
    _world = World(int(os.environ["RANK"]), size, timeout)
    if not _world.first:
        logger.setLevel(logging.ERROR)
    return _world


def check_one_gpu(device: str, *, shared: bool) -> None:
    """InputError if a process has several GPUs before it and no launcher has given it one.

    TRL's trainers would spread each batch over all of them (torch's DataParallel): another batch
    than was asked for, and gradients that nobody has checked. device: the type of a torch.device.
    shared: whether what is trained can be trained by several processes, too.
    """
    import torch

    count = torch.cuda.device_count() if device == "cuda" else 0
    if count < 2 or "LOCAL_RANK" in os.environ:
        return
    told = f"{count} GPUs are visible and a process trains on one: set CUDA_VISIBLE_DEVICES=0"
    if shared:
        script = command(sys.argv).removeprefix("python ")
        start = f"torchrun --standalone --nproc_per_node {count} -- {script}"
        told += f", or start a process for each: {start}"
    raise InputError(told)


def sharding_asked() -> bool:
    """Return whether accelerate was told to shard the base (configs/accelerate/fsdp2.yaml)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def balanced(weights: Sequence[float], shares: int) -> list[list[int]]:
    """Return the indices of the weights in so many shares of about equal sums.

    The heaviest goes first, each to the lightest share: at most 4/3 of the best possible
    (Graham 1969, Bounds on Multiprocessing Timing Anomalies). Indices rise within a share.

    >>> balanced([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    """
    found: list[list[int]] = [[] for _ in range(shares)]
    sums = [0.0] * shares
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        lightest = sums.index(min(sums))
        found[lightest].append(index)
        sums[lightest] += weights[index]
    return [sorted(share) for share in found]


def balanced_share(work: Sequence, weights: Sequence[float]) -> list:
    """Return this process's part of the work, whose pieces are as heavy as told."""
    return [work[i] for i in balanced(weights, world().size)[world().rank]]


class SharedEngine:
    """The engines of all processes, used as if they were one: each samples its share.

    All processes ask for the same; all get what one engine alone would have drawn.
    """

    def __init__(self, engine):
        self.engine = engine

    def generate(self, prompts, samples: int, sampling, *, seed: int) -> list[list]:
        """Return (B, G) rollouts, as `rlm.engine.engine.Engine.generate`."""
        numbers = world().shard(range(len(prompts)))
        mine = [prompts[b] for b in numbers]
        found = self.engine.generate(mine, samples, sampling, seed=seed, numbers=numbers)
        return world().unshard(found, "sampling")

    def __getattr__(self, name):
        return getattr(self.engine, name)


def _end(told: str) -> None:
    print(f"error: {told}", flush=True)
    os._exit(1)


def _leave() -> None:
    """End the group; without it torch warns at the end of the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
