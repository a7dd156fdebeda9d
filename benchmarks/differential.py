"""Curvature of random nets, losses and batchings against double autograd of the whole loss.

    python -m benchmarks.differential                 # 300 cases, a table by loss
    python -m benchmarks.differential --by net call   # the same by net, batching or call
    python -m benchmarks.differential --failures PATH # every wrong call, with its reproduction
    python -m benchmarks.differential --seed 17       # one case, call by call

Right: equal to the oracle within 1e-10 of the largest entry, within 1e-4 for a net in float32.
Refused: a ValueError or MemoryError that names an argument; needed where no number is right, or
samples that know each other are split. Silent: another number. Foreign: any other exception. A seed
is a case, which `tests/differential.py` draws.
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
from random_losses import LOSSES
from random_nets import CLASSES, NETS, VECTORS, NetRow

TOLERANCE = 1e-10
"""Of the largest entry. Round-off of these tiny nets stays below 1e-13."""
SINGLE = 1e-4
"""The same of nets in float32: 800 of their roundings."""
LANCZOS = 1e-8
"""The same of eigenvalues by products, which may stop at a tolerance of 1e-9."""
STEP = 0.1
"""Learning rate of the one step of a training."""
INVARIANCE = 1e-12
"""Between two ways of batching, whose sums differ in order only."""
ARGUMENTS = {
    "batchnorm", "chunk", "data", "engine", "loss", "matrix", "method", "net", "parameters",
    "recipe", "sample_weight", "top", "weight_decay",
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


def settings(case: Case) -> dict[str, Any]:
    """Options of all calls that give a whole matrix."""
    return {"batchnorm": "batch" if case.mixes else "eval", "weight_decay": case.weight_decay}


def operator(case: Case, matrix: str, **options: Any) -> Any:
    options = {"data": case.data, "parameters": case.rows, **settings(case), **options}
    data = options.pop("data")
    return rt.curvature_operator(case.net, loss_of(case), data, matrix=matrix, **options)


MATRICES = ("hessian", "gauss_newton", "empirical_fisher")


def eigenvalues(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix)


def vectors(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 3, generator=generator, dtype=torch.float64)


def of_operator(matrix: str, case: Case) -> dict[str, Tensor]:
    made = operator(case, matrix, chunk=case.chunk, engine=case.engine)
    v = vectors(made.shape[0])
    # Several vectors are differentiated together, a single one alone.
    products = torch.cat([made @ v[:, :-1], (made @ v[:, -1])[:, None]], dim=1)
    loss = torch.tensor(made.loss, dtype=torch.float64)
    return {"loss": loss, "gradient": made.gradient, f"{matrix} @ v": products}


def of_hessian(case: Case) -> dict[str, Tensor]:
    if case.rows:
        return {"hessian": operator(case, "hessian").dense()}
    return {"hessian": rt.hessian(case.net, loss_of(case), case.data, **settings(case))}


def of_hessian_spectrum(case: Case) -> dict[str, Tensor]:
    found = rt.hessian_spectrum(case.net, loss_of(case), case.data, **settings(case))
    return {"eigenvalues": found.eigenvalues}


def of_spectrum(case: Case) -> dict[str, Tensor]:
    if case.rows or case.mixes:
        report = rt.spectrum(operator(case, "hessian"), k=2)
    else:
        decay = case.weight_decay
        report = rt.spectrum(case.net, loss_of(case), case.data, k=2, weight_decay=decay)
    return {"ends and trace": torch.cat([ends_of(report), numbers(report.trace.value)])}


def matrix_free(case: Case) -> dict[str, Tensor]:
    """Eigenvalues of one of the matrices by products alone; which one, its answer tells."""
    made = operator(case, of_turn(case), chunk=case.chunk, engine=case.engine)
    report = rt.spectrum(made, k=2, method="matrix-free", tolerance=0.1 * LANCZOS, probes=1)
    return {f"ends of {made.matrix}": ends_of(report)}


def of_turn(case: Case) -> str:
    """One of the matrices that the case has."""
    return str(case.choose(["hessian"] if case.loss_row.decays else list(MATRICES)))


def evaluation(case: Case) -> dict[str, Tensor]:
    return {"evaluation": numbers(rt.evaluate(case.net, case.data, loss=case.loss).loss)[0]}


def training(case: Case) -> dict[str, Tensor]:
    """The gradient, from the first step of a training on all samples."""
    precision = "float32" if case.single else "float64"
    recipe = rt.Recipe(
        epochs=1, batch=case.samples, lr=STEP, momentum=0.0, weight_decay=case.weight_decay,
        milestones=(), augmentation="none", precision=precision, loss=case.loss,
    )  # fmt: skip
    trained = [p for p in case.net.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    try:
        rt.train(case.net, case.data, recipe, seed=0, device="cpu", progress=False)
        moves = [(b - p.detach()) / STEP for p, b in zip(trained, before, strict=True)]
    finally:
        with torch.no_grad():
            for p, b in zip(trained, before, strict=True):
                p.copy_(b)
    return {"gradient": torch.cat([move.reshape(-1).double() for move in moves])}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ends_of(report: Any) -> Tensor:
    return numbers(*(e.value for e in (*report.smallest, *report.largest)))


def ends(matrix: Tensor) -> Tensor:
    values = eigenvalues(matrix)
    return torch.cat([values[:2], values.flip(0)[:2]])


CALLS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "hessian": of_hessian,
    "hessian_spectrum": of_hessian_spectrum,
    "spectrum": of_spectrum,
    "operator": partial(of_operator, "hessian"),
    "gauss_newton": partial(of_operator, "gauss_newton"),
    "empirical_fisher": partial(of_operator, "empirical_fisher"),
    "matrix-free": matrix_free,
    "evaluate": evaluation,
    "train": training,
}
WHOLE = ("hessian", "hessian_spectrum", "spectrum", "evaluate", "train")
"""Calls without a chunk size."""


def calls_of(case: Case) -> list[str]:
    """The calls that a case has."""
    left = {"hessian_spectrum"} if case.rows else set()
    # Those that take longest have every loss in turn.
    turn = case.seed // len(LOSSES) % 3
    left |= {"matrix-free", "train"} - {("matrix-free", "train", "")[turn]}
    if case.loss_row.batch or case.mixes:
        left |= {"evaluate", "train"}
    kinds = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
    # In a training, what the loss does not reach does not decay.
    unreached = case.net_name == "unused layer" and case.weight_decay
    if case.rows or unreached or any(isinstance(module, kinds) for module in case.net.modules()):
        left.add("train")  # which runs nets in train mode, and moves all that can be moved
    return [call for call in CALLS if call not in left]


DERIVED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "eigenvalues": ("hessian", eigenvalues),
    "ends and trace": ("hessian", lambda m: torch.cat([ends(m), m.trace()[None]])),
    **{f"{name} @ v": (name, lambda m: m @ vectors(len(m))) for name in MATRICES},
    **{f"ends of {name}": (name, ends) for name in MATRICES},
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


def tolerance(case: Case, call: str) -> float:
    if case.single:
        return SINGLE
    return LANCZOS if call == "matrix-free" else TOLERANCE


def judge(case: Case, call: str, answers: Answers) -> Outcome:
    """Make one call and compare it with the oracle."""
    of_call = {"matrix-free": of_turn(case), "evaluate": "evaluation", "train": "gradient"}
    matrix = of_call.get(call, call if call in MATRICES else "hessian")
    undefined = not answers[matrix]
    try:
        found = CALLS[call](case)
    except Exception as error:
        chunk = case.chunk if call not in WHOLE else None
        split = len(case.parts) > 1 or chunk is not None and chunk < case.samples
        whole = case.coupled or case.mixes  # batches that are not to be split
        return exception(call, error, undefined or whole and split)
    if undefined:
        return Outcome(call, "silent", float("inf"), f"{matrix} is not defined here")
    every = range(len(answers[matrix]))
    errors = [{name: gap(found[name], answers[name][i]) for name in found} for i in every]
    worst = min(errors, key=lambda of_answer: max(of_answer.values()))
    name = max(worst, key=lambda name: worst[name])
    right = worst[name] <= tolerance(case, call)
    message = "" if right else f"{name} differs by {worst[name]:.2g} of its largest entry"
    return Outcome(call, "right" if right else "silent", worst[name], message)


def invariance(case: Case) -> Outcome:
    """Compare products over the batches as given with those over one batch in reverse order.

    Matrices take turns; with decay in the loss only the Hessian need be answered.
    """
    matrix = of_turn(case)
    whole = torch.arange(case.samples).flip(0)
    v = vectors(sum(p.numel() for p in case.parameters))
    try:
        given = operator(case, matrix, chunk=case.chunk, engine=case.engine) @ v
        data = arranged("one" if case.sample_weights is None else case.batching, case, [whole])
        other = operator(case, matrix, data=data, chunk=4) @ v
    except Exception as error:
        return exception("invariance", error, False)
    error = gap(given, other)
    right = error <= (SINGLE if case.single else INVARIANCE)
    message = "" if right else f"{matrix} @ v of two batchings differ by {error:.2g}"
    return Outcome("invariance", "right" if right else "silent", error, message)


def outcomes(seed: int) -> tuple[Case, list[Outcome]]:
    """Every call on a case."""
    case = Case(seed)
    answers = Answers(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [judge(case, call, answers) for call in calls_of(case)]
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
