"""Processes killed at random moments, several times each, and then called again."""

import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import resid_theory as rt
from benchmarks import crash, sweep
from benchmarks.outcome import Outcome, judged
from resid_theory.runtime import store

TRIALS = 50  # of each kind; half an hour on an idle machine


def kills(count: int, seed: int = 0) -> Outcome:
    """Trainings killed at random moments, several times each, then continued."""
    draw, context = random.Random(seed), crash.server()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    crash.undisturbed(context, Path(tempfile.mkdtemp(prefix="crash-")))  # starts the server
    reference, seconds = crash.undisturbed(context, folder)
    hits: list[int] = []

    def trial() -> None:
        hits.append(crash.trial(context, reference, seconds, draw))

    found = judged(
        "kill -9 of a training at a random moment, up to four times, then continued",
        "weights, optimizer, metrics and files bit-identical to an undisturbed training",
        [(f"trial {number}", trial) for number in range(count)],
    )
    shutil.rmtree(folder)
    return Outcome(**{**vars(found), "note": _met(hits, "the training")})


def estimating(folder: str) -> None:
    """Eigenpairs whose products are kept; the last act writes the result."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    net = rt.simplified_net(8, generator=generator).eval()
    x, y = torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 10
    operator = rt.curvature_operator(net, "cross_entropy", (x, y), accumulate="float32")
    pairs = rt.eigenpairs(operator, 5, which="both", folder=Path(folder) / "products")
    store.write_arrays(Path(folder) / "result.npz", {"vectors": pairs.vectors.numpy()})


def sweeping(folder: str) -> None:
    """A sweep in one process; the last act writes what it found, but for the seconds."""
    torch.set_num_threads(1)
    grid = {"task": "hessian", "blocks": [1, 2, 3], "init": ["near_zero", "xavier"], "seed": [0, 1]}
    rt.run_sweep(grid, Path(folder) / "sweep", executor="serial", progress=False)
    table = rt.sweep.load_results(Path(folder) / "sweep", arrays=True).drop(columns="seconds")
    arrays = {f"{key}.values": row.pop("eigenvalues") for key, row in table.T.to_dict().items()}
    numbers = table.drop(columns="eigenvalues").to_json().encode()
    arrays["numbers"] = np.frombuffer(numbers, dtype=np.uint8)
    store.write_arrays(Path(folder) / "result.npz", arrays)


def killed_calls(
    fault: str, promise: str, target: Callable[[str], None], count: int, seed: int = 0
) -> Outcome:
    """Calls that keep what they have in a folder, killed at random moments, then made again."""
    draw = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    needed = ["sklearn.datasets", "pandas", "resid_theory.sweep", "resid_theory.curvature"]
    context.set_forkserver_preload(["torch", *needed])

    def once(folder: Path, seconds: float | None) -> tuple[float, bool]:
        process, begun = context.Process(target=target, args=(str(folder),)), time.time()
        process.start()
        process.join(seconds)
        alive = process.is_alive()
        if alive:
            process.kill()
        process.join()
        return time.time() - begun, alive

    with tempfile.TemporaryDirectory() as folder:
        once(Path(folder), None)
        (Path(folder) / "result.npz").unlink()
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = once(Path(folder), None)
        exact = store.digest(Path(folder) / "result.npz")
    kills: list[int] = []

    def trial() -> str | None:
        hits = 0
        while not hits:
            with tempfile.TemporaryDirectory() as folder:
                moments = [draw.uniform(0, seconds) for _ in range(draw.randint(1, 4))]
                hits = sum(once(Path(folder), moment)[1] for moment in moments)
                once(Path(folder), None)
                if store.digest(Path(folder) / "result.npz") != exact:
                    return "another result"
        kills.append(hits)
        return None

    found = judged(fault, promise, [(f"trial {number}", trial) for number in range(count)])
    return Outcome(**{**vars(found), "note": _met(kills, "the call")})


def _met(kills: Sequence[int], what: str) -> str:
    return f"{sum(kills)} kills met {what}; more than one in {sum(n > 1 for n in kills)} trials"


def killed_workers(cells: int = 200) -> Outcome:
    """Cells of a sweep whose workers are killed one after the other.

    As often as a worker needs to start and end a cell, on the machine as it is: killed more often,
    a cell may use up its retries, and is reported as failed.
    """
    seconds = sweep.undisturbed(workers=2)
    found = sweep.killed_sweep(cells, workers=2, seconds=seconds, seed=0)
    counts = {
        "without a result": cells - found.verified,
        "done twice": found.twice,
        "failed": len(found.report.failed),
    }
    return Outcome(
        fault="kill -9 of a worker of a sweep, over and over",
        promise="every cell done once, its result verifies",
        trials=cells,
        lost=tuple(f"{count} cells {how}" for how, count in counts.items() if count),
        note=f"{found.killed} workers killed, one every {seconds:.1f} s",
    )


def rows(quick: bool = False) -> list[Outcome]:
    """Four rows; the quick part has none, as the tests kill trainings and workers themselves."""
    if quick:
        return []
    estimates = killed_calls(
        "kill -9 of eigenpairs(folder=...), up to four times, then called again",
        "eigenvectors bit-identical to an undisturbed call",
        estimating,
        TRIALS,
    )
    drivers = killed_calls(
        "kill -9 of a whole sweep of 12 cells, up to four times, then called again",
        "eigenvalues and table bit-identical to an undisturbed sweep",
        sweeping,
        TRIALS,
    )
    return [kills(TRIALS), estimates, drivers, killed_workers()]
