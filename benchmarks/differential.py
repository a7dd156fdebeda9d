"""Curvature of random nets, losses and batchings against double autograd of the whole loss.

    python -m benchmarks.differential                 # 300 cases, a table by loss
    python -m benchmarks.differential --by net call   # the same by net, batching or call
    python -m benchmarks.differential --failures PATH # every wrong call, with its reproduction
    python -m benchmarks.differential --seed 17       # one case, call by call

Right: equal to the oracle within 1e-10 of the largest entry. Refused: a ValueError or MemoryError
that names an argument; needed where no number is right, or samples that know each other are split.
Silent: another number. Foreign: any other exception. A seed is a case, which
`tests/differential.py` draws.
"""

import argparse
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resid_theory as rt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from differential import Case, arranged
from random_nets import CLASSES, NETS, VECTORS, NetRow

TOLERANCE = 1e-10
"""Of the largest entry. Round-off of these tiny nets stays below 1e-13."""
INVARIANCE = 1e-12
"""Between two ways of batching, whose sums differ in order only."""
ARGUMENTS = {
    "batchnorm", "chunk", "data", "engine", "loss", "matrix", "method", "net", "parameters",
    "sample_weight", "weight_decay",
}  # fmt: skip
VERDICTS = ("right", "refused", "needed", "silent", "foreign")


# Nets of the library ------------------------------------------------------------------------------


def dirac() -> nn.Module:
    layer = rt.identity.with_identity(nn.Linear(CLASSES, CLASSES), "dirac")
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(CLASSES, CLASSES))


def shortcut(**options: Any) -> nn.Module:
    net = rt.ShortcutNet(CLASSES, blocks=2, shortcut_depth=2, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.5)
    return net


NETS["Dirac"] = NetRow(dirac, VECTORS)
NETS["linear shortcut"] = NetRow(shortcut, VECTORS)
NETS["shortcut"] = NetRow(partial(shortcut, mid="tanh", bias=True), VECTORS)


# Calls --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of one call: a verdict, the error relative to the largest entry, and a message.

    ``needed`` is a refusal where no number is right.
    """

    call: str
    verdict: str
    error: float = 0.0
    message: str = ""


def loss_of(case: Case) -> Any:
    return rt.Loss(case.loss, of="batch") if case.loss_row.batch else case.loss


def operator(case: Case, matrix: str, **options: Any) -> Any:
    options = {"chunk": case.chunk, "engine": case.engine, "data": case.data} | options
    data = options.pop("data")
    return rt.curvature_operator(case.net, loss_of(case), data, matrix=matrix, **options)


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)


def vectors(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, generator=generator, dtype=torch.float64)


def of_operator(matrix: str, case: Case) -> dict[str, Tensor]:
    made = operator(case, matrix)
    v = vectors(made.shape[0])
    # Several vectors are differentiated together, a single one alone.
    products = torch.cat([made @ v[:, :-1], (made @ v[:, -1])[:, None]], dim=1)
    loss = torch.tensor(made.loss, dtype=torch.float64)
    return {"loss": loss, "gradient": made.gradient, f"{matrix} @ v": products}


def of_spectrum(case: Case) -> dict[str, Tensor]:
    report = rt.spectrum(case.net, loss_of(case), case.data, k=2)
    ends = [e.value for e in (*report.smallest, *report.largest)]
    return {"ends and trace": torch.tensor([*ends, report.trace.value], dtype=torch.float64)}


def ends_and_trace(matrix: Tensor) -> Tensor:
    values = eigenvalues(matrix)
    return torch.stack([values[0], values[1], values[-1], values[-2], values.sum()])


CALLS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "hessian": lambda case: {"hessian": rt.hessian(case.net, loss_of(case), case.data)},
    "hessian_spectrum": lambda case: {
        "eigenvalues": rt.hessian_spectrum(case.net, loss_of(case), case.data).eigenvalues
    },
    "spectrum": of_spectrum,
    "operator": partial(of_operator, "hessian"),
    "gauss_newton": partial(of_operator, "gauss_newton"),
    "fisher": partial(of_operator, "fisher"),
}
WHOLE = ("hessian", "hessian_spectrum", "spectrum")
"""Calls without a chunk size."""
DERIVED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "eigenvalues": ("hessian", eigenvalues),
    "ends and trace": ("hessian", ends_and_trace),
    **{
        f"{name} @ v": (name, lambda matrix: matrix @ vectors(len(matrix)))
        for name in ("hessian", "gauss_newton", "fisher")
    },
}


class Answers:
    """The oracle of a case, each matrix computed once."""

    def __init__(self, case: Case) -> None:
        self._case, self._known = case, {}

    def __getitem__(self, name: str) -> list[Tensor]:
        if name not in self._known:
            if name in DERIVED:
                matrix, function = DERIVED[name]
                self._known[name] = [function(answer) for answer in self[matrix]]
            else:
                self._known[name] = self._case.exact(name)
        return self._known[name]


def gap(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest entry; infinite where shapes differ or for NaN."""
    if found.shape != exact.shape:
        return float("inf")
    difference = (found.detach() - exact).abs().nan_to_num(float("inf"), float("inf")).max()
    scale = float(exact.abs().max())
    return float(difference) / scale if scale else float(difference)


def exception(call: str, error: Exception, needed: bool) -> Outcome:
    message = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    name = re.match(r"(\w+)[^:]{0,60}:", str(error))
    ours = isinstance(error, (ValueError, MemoryError)) and name and name[1] in ARGUMENTS
    verdict = "foreign" if not ours else "needed" if needed else "refused"
    return Outcome(call, verdict, message=message)


def judge(case: Case, call: str, answers: Answers) -> Outcome:
    """Make one call and compare it with the oracle."""
    matrix = call if call in ("gauss_newton", "fisher") else "hessian"
    undefined = not answers[matrix]
    try:
        found = CALLS[call](case)
    except Exception as error:
        chunk = case.chunk if call not in WHOLE else None
        split = len(case.parts) > 1 or chunk is not None and chunk < case.samples
        return exception(call, error, undefined or case.coupled and split)
    if undefined:
        return Outcome(call, "silent", float("inf"), f"{matrix} is not defined here")
    every = range(len(answers[matrix]))
    errors = [{name: gap(found[name], answers[name][i]) for name in found} for i in every]
    worst = min(errors, key=lambda of_answer: max(of_answer.values()))
    name = max(worst, key=lambda name: worst[name])
    right = worst[name] <= TOLERANCE
    message = "" if right else f"{name} differs by {worst[name]:.2g} of its largest entry"
    return Outcome(call, "right" if right else "silent", worst[name], message)


def invariance(case: Case) -> Outcome:
    """Compare products over the batches as given with those over one batch in reverse order.

    Matrices take turns; with decay in the loss only the Hessian need be answered.
    """
    matrices = ("hessian",) if case.loss_row.decays else ("hessian", "gauss_newton", "fisher")
    matrix = case.choose(matrices)
    whole = torch.arange(case.samples).flip(0)
    v = vectors(sum(p.numel() for p in case.parameters))
    try:
        given = operator(case, matrix) @ v
        data = arranged("one" if case.sample_weights is None else case.batching, case, [whole])
        other = operator(case, matrix, data=data, chunk=4, engine="auto") @ v
    except Exception as error:
        return exception("invariance", error, False)
    error = gap(given, other)
    right = error <= INVARIANCE
    message = "" if right else f"{matrix} @ v of two batchings differ by {error:.2g}"
    return Outcome("invariance", "right" if right else "silent", error, message)


def outcomes(seed: int) -> tuple[Case, list[Outcome]]:
    """Every call on a case."""
    case = Case(seed)
    answers = Answers(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [judge(case, call, answers) for call in CALLS]
        if case.free:
            found.append(invariance(case))
    return case, found


# The page -----------------------------------------------------------------------------------------


def row_name(by: str, case: Case, outcome: Outcome) -> str:
    names = {"loss": case.loss_name, "net": case.net_name, "batching": case.batching}
    return (names | {"call": outcome.call})[by]


def table(by: str, results: list[tuple[Case, list[Outcome]]]) -> Iterator[str]:
    """Counts of verdicts by loss, net, batching or call; errors are those of right calls."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    worst: defaultdict[str, float] = defaultdict(float)
    for case, found in results:
        for outcome in found:
            for name in (row_name(by, case, outcome), "all"):
                counts[name][outcome.verdict] += 1
                if outcome.verdict == "right":
                    worst[name] = max(worst[name], outcome.error)
    yield f"| {by} | calls | {' | '.join(VERDICTS)} | right of those with an answer | worst error |"
    yield "|---" * (len(VERDICTS) + 4) + "|"
    for name in [*sorted(name for name in counts if name != "all"), "all"]:
        count = counts[name]
        numbers = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        answerable = count.total() - count["needed"]
        share = f"{count['right'] / answerable:.0%}" if answerable else ""
        yield f"| {name} | {count.total()} | {numbers} | {share} | {worst[name]:.0e} |"


def failures(results: list[tuple[Case, list[Outcome]]]) -> Iterator[str]:
    """Silent differences, foreign exceptions and refusals by loss, each case with its calls."""
    kinds: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for case, found in results:
        for verdict in ("silent", "foreign", "refused"):
            calls = [outcome for outcome in found if outcome.verdict == verdict]
            if calls:
                names = ", ".join(outcome.call for outcome in calls)
                kinds[verdict, case.loss_name].append(f"- {case}\n  {names}: {calls[0].message}")
    for verdict in ("silent", "foreign", "refused"):
        for (kind, loss), lines in sorted(kinds.items()):
            if kind == verdict:
                yield f"\n## {verdict}: {loss} ({len(lines)} cases)\n"
                yield from lines


def main() -> None:
    """Run the cases and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300, help="number of seeds, from 0")
    parser.add_argument("--seed", type=int, help="one case only, call by call")
    kinds = ("loss", "net", "batching", "call")
    parser.add_argument("--by", choices=kinds, nargs="+", default=["loss"], help="tables")
    parser.add_argument("--failures", type=Path, help="write every call that is not right")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.seed is not None:
        case, found = outcomes(options.seed)
        print(case, case.net, sep="\n")
        for outcome in found:
            print(f"{outcome.call}: {outcome.verdict}, {outcome.error:.1e} {outcome.message}")
        return
    start = time.perf_counter()
    results = [outcomes(seed) for seed in range(options.cases)]
    for by in options.by:
        print("\n".join(table(by, results)), end="\n\n")
    seconds = time.perf_counter() - start
    print(f"{options.cases} cases in {seconds:.0f} s, torch {torch.__version__}")
    if options.failures:
        options.failures.write_text("\n".join(failures(results)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
