"""Whole steps as CUDA graphs: recorded once, proved, and replayed without the host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resid_theory.training.checkpoint import pack, unpack
from resid_theory.training.step import NetGroup

NOT_REPLAYED = "steps are not replayed as a CUDA graph"  # begins the note that says why
_TRIED = 3  # steps that must have the same losses: the second one is the first to use momentum
_EQUAL = 1e-5  # relative; kernels that repeat give the same bits


class StepGraphs:
    """Graphs of a step, one for each number of samples.

    A graph repeats what the device did, with the same memory and without any Python. So a step may
    depend on tensors only, which are overwritten in place: the place in the epoch, the order of the
    samples, their images, the rate. What a net counts in Python does not go on; the proof compares
    a few steps, and what it changes is put back.

    Attributes:
        fault: Why steps are not replayed; None as long as they are.
    """

    def __init__(
        self,
        group: NetGroup,
        optimizer: torch.optim.Optimizer,
        sums: dict[str, Tensor],
        step: Callable[[Tensor, int], Tensor],
    ) -> None:
        self._group, self._optimizer, self._sums, self._step = group, optimizer, sums, step
        self._device = next(iter(sums.values())).device
        self._place = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._replays: dict[int, Callable[[], object]] = {}
        self._pool: Any = None
        self.fault: str | None = None

    def replay(self, place: int, samples: int, last: int) -> bool:
        """Take a step, recorded at the first of its kind; False if steps are not replayed."""
        group, *_ = self._optimizer.param_groups
        if not isinstance(group["lr"], Tensor):
            self.fault = "needs parameters in float32 and dense gradients"
        self._place.fill_(place)
        if samples not in self._replays and self.fault is None:
            try:
                with torch.cuda.device(self._device):
                    self._replays[samples] = self._record(place, samples, last - place + 1)
            except RuntimeError as error:
                self.fault, *_ = f"{type(error).__name__}: {str(error).strip()}".splitlines()
        if self.fault is not None:
            return False
        self._replays[samples]()
        return True

    def _record(self, place: int, samples: int, left: int) -> Callable[[], object]:
        """Record a step and compare a few replays with steps as they are; all is undone."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                # Momentum of zeros: without any, the first step is another one than the rest.
                state = self._optimizer.state[parameter]
                state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        before = {k: t.clone() for k, t in pack(self._group, self._optimizer, self._sums).items()}
        losses = torch.empty(0)

        def step() -> None:
            nonlocal losses
            losses = self._step(self._place, samples)
            self._place.add_(1)

        def undo() -> None:
            unpack(before, self._group, self._optimizer, self._sums)
            self._place.fill_(place)

        def tried(call: Callable[[], object]) -> Tensor:
            found = []
            for _ in range(min(_TRIED, left)):
                call()
                found.append(losses.clone())
            return torch.stack(found)

        try:
            side = torch.cuda.Stream()  # libraries are to be started on another stream
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                plain = tried(step)
            torch.cuda.current_stream().wait_stream(side)
            undo()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # So that a thread that writes a checkpoint may go on.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
            undo()
            replayed = tried(graph.replay)
        finally:
            undo()
        gap = float(((replayed - plain).abs() / plain.abs().clamp_min(1e-30)).max())
        if not gap <= _EQUAL:
            raise RuntimeError(f"the losses of replayed steps differ by {gap:.1g}")
        replay: Callable[[], object] = graph.replay
        return replay
