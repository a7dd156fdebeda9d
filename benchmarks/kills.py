"""Processes killed at random moments, several times each, and then called again."""

import multiprocessing
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

import resid_theory as rt
from benchmarks import crash, sweep
from benchmarks.outcome import Outcome, judged
from resid_theory import store

TRIALS = 30  # of each kind; minutes on an idle machine


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
    note = f"{sum(hits)} kills met the training; more than one in {sum(h > 1 for h in hits)} trials"
    return Outcome(**{**vars(found), "note": note})


def estimating(folder: str) -> None:
    """Eigenpairs whose products are kept; the last act writes the result."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 300, generator=generator, dtype=torch.float64)
    pairs = rt.eigenpairs(matrix + matrix.mT, 5, tolerance=1e-10, folder=Path(folder) / "products")
    (Path(folder) / "begun").touch()
    store.write_arrays(Path(folder) / "result.npz", {"vectors": pairs.vectors.numpy()})


def killed_estimates(count: int, seed: int = 0) -> Outcome:
    """Estimates of a folder killed at random moments, then called again."""
    draw = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "resid_theory.curvature"])

    def once(folder: Path, seconds: float | None) -> float:
        process, begun = context.Process(target=estimating, args=(str(folder),)), time.time()
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        return time.time() - begun

    with tempfile.TemporaryDirectory() as folder:
        once(Path(folder), None)
        seconds = once(Path(folder), None)
        exact = store.digest(Path(folder) / "result.npz")

    def trial() -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(draw.randint(1, 4)):
                once(Path(folder), draw.uniform(0, seconds))
            once(Path(folder), None)
            found = store.digest(Path(folder) / "result.npz")
            return None if found == exact else "another result"

    return judged(
        "kill -9 of eigenpairs(folder=...), up to four times, then called again",
        "eigenvectors bit-identical to an undisturbed call",
        [(f"trial {number}", trial) for number in range(count)],
    )


def killed_workers(cells: int = 200) -> Outcome:
    """Cells of a sweep of which a worker is killed every three seconds."""
    found = sweep.killed_sweep(cells, workers=2, seconds=3.0, seed=0)
    counts = {
        "without a result": cells - found.verified,
        "done twice": found.twice,
        "failed": len(found.report.failed),
    }
    return Outcome(
        fault="kill -9 of a worker of a sweep every three seconds",
        promise="every cell done once, its result verifies",
        trials=cells,
        lost=tuple(f"{count} cells {how}" for how, count in counts.items() if count),
        note=f"{found.killed} workers killed",
    )


def rows(quick: bool = False) -> list[Outcome]:
    """Three rows; the quick part has none, as the tests kill trainings and workers themselves."""
    return [] if quick else [kills(TRIALS), killed_estimates(TRIALS), killed_workers()]
