"""Whether one, two and three processes of torch.distributed agree on every product."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import resid_theory as rt
from benchmarks.outcome import Outcome, Trial, judged

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


def trials() -> Iterator[Trial]:
    """Products, blocks, loss and gradient of every world, from every process."""
    import test_ranks

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            test_ranks.work, (folder,), nprocs=3, start_method="spawn"
        )
        found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(3)]
    net, x, y, vectors = test_ranks.problem()
    for matrix in ("hessian", "fisher"):
        whole = rt.curvature_operator(net, "square", (x, y), matrix=matrix)
        exact = {
            "product": whole @ vectors,
            "block": whole.block("0.*", "2.*") @ vectors[:10],
            "loss": torch.tensor(whole.loss, dtype=torch.float64),
            "gradient": whole.gradient,
        }
        for count in (1, 2, 3):
            for what, wanted in exact.items():
                results = [found[rank][count][matrix][what] for rank in range(count)]

                def trial(results=results, wanted=wanted) -> str | None:
                    if not all(torch.equal(result, results[0]) for result in results):
                        return "processes differ"
                    gap = float((results[0] - wanted).abs().max() / wanted.abs().max())
                    return None if gap <= 1e-12 else f"{gap:.1e} from one process"

                yield f"{what} of the {matrix}, {count} processes", trial


def rows(quick: bool = False) -> list[Outcome]:
    """One row; the quick part has none, because tests/test_ranks.py is it."""
    promise = "bit-identical on all of them, and to 1e-12 what one process computes"
    fault = "shards of unequal size on 1, 2 and 3 processes"
    return [] if quick else [judged(fault, promise, trials())]
