"""Confirmation of finished trainings: today's code takes their first steps once more."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

import resid_theory as rt
from experiments.digest import code_digest
from experiments.parts import Execution, Finished, Store, float32_by_default
from experiments.provenance import run_information
from experiments.trainings import Training

STEPS = 50  # whose losses a training keeps
# Largest relative gap between two machines: of each of the first three losses, and of the mean of
# all. Before the weights differ a loss is off by the rounding of its products; afterwards the gap
# grows. Measured on an H100 over 30 steps: 0 and 0 in float32, 1e-6 and 2e-5 in tf32, 2e-3 and 4e-3
# in bf16. An error of a formula shows in the first losses at once.
BOUNDS = {"float32": (1e-5, 1e-3), "tf32": (2e-3, 3e-2), "bf16": (2e-2, 5e-2)}
# What the last bits of a training depend on, beside its code.
KIND = ("device", "hardware", "threads", "torch", "precision", "channels_last", "compile")


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Result of a replay.

    Attributes:
        code: Digest of the code that took the steps.
        steps: Number of losses that were compared.
        exact: Whether they are equal to the last bit.
        gap: What is too far apart, in words; empty if nothing is.
    """

    code: str | None
    steps: int
    exact: bool
    gap: str


def loss_gap(here: Sequence[float], there: Sequence[float], precision: str) -> str:
    """What of two lists of first losses is too far apart; empty if nothing is."""
    new, old = torch.tensor(here, dtype=torch.float64), torch.tensor(there, dtype=torch.float64)
    first = float(((new - old).abs() / old.abs())[:3].max())
    mean = float((new.mean() - old.mean()).abs() / old.mean().abs())
    bounds = BOUNDS[precision]
    if first <= bounds[0] and mean <= bounds[1]:  # NaN is not
        return ""
    return f"gap {first:.1e} of the first losses, {mean:.1e} of their mean; bounds {bounds}"


@float32_by_default()
def first_losses(part: Training, execution: Execution) -> list[float]:
    """Losses of the first steps of a training."""
    run = rt.train(
        part.start(),
        part.images("train"),
        part.recipe.change(**part.means(execution)),
        seed=part.seed,
        device=execution.device,
        stop=lambda step: step >= STEPS,
        progress=False,
    )
    losses: list[float] = run.first_losses[0].tolist()
    return losses


def confirm(part: Training, own: Store, device: str = "cpu") -> Confirmation:
    """Replay the first steps of a finished training and keep the answer beside it.

    On a machine of the same kind they must be equal to the last bit, on another one within bounds.
    """
    done = own.find(part)
    if done is None:
        raise ValueError(f"part: {part.cell} is not finished, so there is nothing to confirm")
    found = replay(part, done, device)
    if not found.gap:
        own.confirm(part, asdict(found))
    return found


def replay(part: Training, done: Finished, device: str = "cpu") -> Confirmation:
    """Take the first steps of a finished training once more; see ``confirm``."""
    there = done.arrays["first_losses"].tolist()
    if not there:
        raise ValueError(
            f"part: {part.cell} was trained by a version that kept no first losses, so it cannot "
            "be confirmed"
        )
    how = {name: done.record[name] for name in ("precision", "channels_last", "compile")}
    now = {**run_information(device, 0.0), **how}
    same = all(now[name] == done.record[name] for name in KIND)
    code = code_digest(type(part))
    execution = Execution(device=device, **how) if same else Execution(device=device)
    here = first_losses(part, execution)
    exact = here == there
    gap = "" if exact else loss_gap(here, there, str(how["precision"]))
    if same and not exact:
        gap = gap or "not equal to the last bit, on a machine of the same kind"
    return Confirmation(code=code, steps=len(there), exact=exact, gap=gap)
