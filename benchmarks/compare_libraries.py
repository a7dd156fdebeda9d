"""Top eigenvalues of Hessians: time and Hessian-vector products against other libraries.

    python -m benchmarks.compare_libraries [LIBRARY ...] [--only ROW ...] [--top 5] [--repeats 3]
    python -m benchmarks.compare_libraries --steps --only mlp    # our search, step by step

The libraries (pyhessian, hessian_eigenthings, curvlinops) are no dependencies: what is not
importable is listed and skipped. Both sides are float32, one thread, in turns, construction
included; times are processor time.

A question is answered when the largest eigenvalues (five, or --top) are right to 1e-3. Of each
library the row shows (1) "own rule": what it costs to be told 1e-3 and nothing else, with the error
that is left, and (2) "told": the cheapest setting of a grid at which the values are right, found by
comparing with the known answer, which nobody has. Ours is never told anything: "verified" is the
default, which no other library has; "first run" does not look for copies, as the others do not.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import resid_theory as rt
from benchmarks.libraries import (
    RIVALS,
    Case,
    Counted,
    Curvlinops,
    Eigenthings,
    Found,
    arpack,
    importable,
)
from benchmarks.products import images, perceptron
from benchmarks.timing import rounds
from resid_theory.eigen.convergence import SearchState
from resid_theory.eigen.krylov import Krylov, Locked
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.ritz_bounds import Goal

ACCURACY = 1e-3


def wrong(values: Tensor, exact: Tensor) -> float:
    """Largest relative error."""
    return float(((values - exact) / exact).abs().max())


def ours(case: Case, k: int, verify: bool) -> Found:
    """Eigenpairs to the accuracy asked for."""
    operator = case.operator()
    pairs = rt.eigenpairs(operator, k, tolerance=ACCURACY, verify=verify)
    return Found(values=pairs.values, products=pairs.products, claims=bool(pairs.converged.all()))


class Steps:
    """One long Lanczos run of hessian_eigenthings, which holds all the shorter ones."""

    def __init__(self, rival: Eigenthings, case: Case, k: int, most: int) -> None:
        self.k = k
        operator, kept = rival._operator(case), case.operator()
        operator.matvec = lambda v: kept @ v  # the same matrix, on graphs that are kept
        algorithms = __import__("hessian_eigenthings.algorithms.lanczos", fromlist=["lanczos"])
        start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0))
        run = algorithms.lanczos_tridiagonal(operator, start, most, reorthogonalize=True)
        self.matrix = algorithms._build_tridiag_matrix(run).double()
        self.links = [*run.betas.tolist(), run.last_beta]

    def after(self, steps: int) -> Found:
        """What it gives after so many steps, and whether it would say converged at 1e-3."""
        values, vectors = torch.linalg.eigh(self.matrix[:steps, :steps])
        values, last = values.flip(0)[: self.k], vectors[-1].abs().flip(0)[: self.k]
        small = last * self.links[steps - 1] < ACCURACY * values.abs()
        return Found(values=values, products=steps, claims=bool(small.all()))


def by_own_rule(rival: object, case: Case, k: int) -> Found:
    """What a library gives that is told the accuracy; of steps, doubled until it is content."""
    if not isinstance(rival, Eigenthings):
        return rival.eigenvalues(case, k, rival.own)
    spent = 0
    for steps in (10, 20, 40, 80):
        found = rival.eigenvalues(case, k, steps)
        spent += found.products
        if found.claims:
            break
    return Found(values=found.values, products=spent, claims=found.claims)


def told(rival: object, case: Case, exact: Tensor) -> tuple[object, Found]:
    """The cheapest setting that is accurate, or None, and what it gives."""
    k = len(exact)
    if isinstance(rival, Eigenthings):
        run = Steps(rival, case, k, rival.settings[-1])
        tried = {steps: run.after(steps) for steps in rival.settings}
    else:
        tried = {}
        for setting in rival.settings:
            if isinstance(rival, Curvlinops):
                kept = case.operator()
                counted = Counted(lambda v, kept=kept: (kept @ v).numpy(), kept.shape[0])
                tried[setting] = arpack(counted, k, setting)
            else:
                tried[setting] = rival.eigenvalues(case, k, setting)
                if wrong(tried[setting].values, exact) <= ACCURACY:
                    break
    right = {s: f for s, f in tried.items() if wrong(f.values, exact) <= ACCURACY}
    if right:
        best = min(right, key=lambda s: right[s].products)
        return best, right[best]
    best = min(tried, key=lambda s: wrong(tried[s].values, exact))
    return None, tried[best]


def eigenvalues(case: Case, rivals: list[object], k: int, repeats: int) -> None:
    """One row: who needs how long."""
    reference = rt.eigenpairs(case.operator("float64"), k, tolerance=1e-5)
    exact = reference.values
    size = sum(len(y) for _, y in case.batches)
    print(
        f"\n{case.name}: {size} samples in {len(case.batches)} batches, top {k}, reference "
        f"{exact[0]:.5g} ... {exact[-1]:.5g} to {float((reference.bounds / exact).max()):.0e}"
    )
    tasks: dict[str, Callable[[], Found]] = {
        "ours, verified": lambda: ours(case, k, True),
        "ours, first run": lambda: ours(case, k, False),
    }  # fmt: skip
    for rival in rivals:
        tasks[f"{rival.name}, own rule"] = lambda r=rival: by_own_rule(r, case, k)
        setting, found = told(rival, case, exact)
        if setting is None:
            print(f"  {rival.name}, told: not reached, best error {wrong(found.values, exact):.1e} "
                  f"after {found.products} products", flush=True)  # fmt: skip
        else:
            name = f"{rival.name}, told {setting}"
            tasks[name] = lambda r=rival, s=setting: r.eigenvalues(case, k, s)
    found, seconds = rounds(tasks, repeats)
    for name, result in found.items():
        error = wrong(result.values, exact)
        mark = "" if error <= ACCURACY else "  NOT ACCURATE"
        print(f"  {name:36} {statistics.median(seconds[name]):8.2f} s {result.products:5d} products"
              f"  error {error:.1e}{mark}", flush=True)  # fmt: skip
    for way in ("own rule", "told"):
        others = [
            seconds[name]
            for name in found
            if way in name and wrong(found[name].values, exact) <= ACCURACY
        ]
        for name in ("ours, verified", "ours, first run") if others else ():
            ratios = [min(o[i] for o in others) / s for i, s in enumerate(seconds[name])]
            print(f"  best of the others, {way} / {name}: {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f} to {max(ratios):.2f} over {repeats})")  # fmt: skip


def search_steps(case: Case, k: int, most: int = 32) -> None:
    """Bounds and certificate after each step of a first run from one, two and three vectors."""
    print(f"\n{case.name}: products, largest relative bound of the top {k}, probability of a miss")
    goal = Goal(which="largest", k=k, tolerance=ACCURACY)
    for width in (1, 2, 3):
        operator = RecordedOperator(case.operator())
        run = Krylov(
            operator,
            Locked.none(operator),
            width=width,
            capacity=2 * most,
            generator=torch.Generator().manual_seed(0),
        )
        edges: dict[int, float] = {}
        while run.multiplied <= most - width:
            run.extend(operator @ run.block)
            state = SearchState.after(run, goal, edges, first=True)
            edges = state.edges
            if len(state.columns) == k:
                bound = float((state.bounds / state.ritz.values[state.columns].abs()).max())
                print(f"  {width} vectors {run.multiplied:4d} {bound:10.1e} {state.missed:10.1e}")


ROWS = ("mlp", "mlp-loader", "resnet", "resnet-loader")


def main() -> None:
    """Parse, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=list(RIVALS))
    parser.add_argument("--only", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", action="store_true", help="show our search alone")
    parser.add_argument("--images", type=int, default=32, help="of a batch")
    parser.add_argument("--batches", type=int, default=3, help="of the loader of images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float32; {time.strftime('%Y-%m-%d')}")
    rivals = importable(arguments.libraries)
    cases = perceptrons() | residuals(arguments.images, arguments.batches)
    for row, case in cases.items():
        if row in arguments.only and arguments.steps:
            search_steps(case, arguments.top)
        elif row in arguments.only:
            eigenvalues(case, rivals, arguments.top, arguments.repeats)


def perceptrons() -> dict[str, Case]:
    """An MLP on 2,048 samples of noise, in one batch and in eight."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2048, 128, generator=generator), torch.arange(2048) % 10
    torch.manual_seed(0)
    net = perceptron().eval()
    loader = list(zip(x.split(256), y.split(256), strict=True))
    return {
        "mlp": Case("8-layer MLP, one batch", net, [(x, y)]),
        "mlp-loader": Case("8-layer MLP, loader", net, loader),
    }


def residuals(count: int, batches: int) -> dict[str, Case]:
    """A ResNet-20 on CIFAR-10 images, one batch and several."""
    net = rt.full_net(20, generator=0).eval()
    x, y = images(count * batches)
    loader = list(zip(x.split(count), y.split(count), strict=True))
    return {
        "resnet": Case("ResNet-20, one batch", net, loader[:1]),
        "resnet-loader": Case("ResNet-20, loader", net, loader),
    }


if __name__ == "__main__":
    main()
