"""Curvature along a training: a callback that adds it to the metrics of ``train``."""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_int, check_positive, check_seed
from resid_theory.curvature.fisher_graphs import MATRICES
from resid_theory.curvature.operator import curvature_operator
from resid_theory.curvature.parameter_selection import select_parameters, trainable_by_name
from resid_theory.curvature.spectrum_of_net import spectrum
from resid_theory.data import Data
from resid_theory.eigen.estimate import Estimate
from resid_theory.losses import Loss, LossLike
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.net_state import copied
from resid_theory.runtime.preserve import preserved


class TrainingMoment(Protocol):
    """The moment of a measurement; ``train`` passes its own."""

    @property
    def step(self) -> int:
        """Number of steps done."""
        ...


def curvature_callback(
    loss: LossLike,
    data: Any,
    *,
    k: int = 1,
    index: bool = False,
    matrix: str = "hessian",
    parameters: Any = None,
    batchnorm: str = "eval",
    dense: int = 1000,
    tolerance: float = 1e-3,
    probes: int = 10,
    steps: int = 100,
    seed: int = 0,
    prefix: str = "",
) -> Callable[[nn.Module, TrainingMoment], dict[str, float]]:
    """A callback for ``train`` that records extreme eigenvalues, index and gradient norm.

    Pass it as ``rt.train(..., callbacks=[callback], every=k)``; the numbers join the metrics. They
    are a function of weights, seed and step alone, so that a training that was killed and resumed
    has the metrics of an undisturbed one; all nets of a training use the same random vectors. The
    numbers, after ``prefix``, for the matrix ``hessian`` (else its name takes that place):

    - ``measured_loss``: The mean loss over ``data``, without weight decay.
    - ``gradient_norm``: Euclidean norm of its gradient.
    - ``hessian_largest``, ``hessian_smallest``: The outermost eigenvalues; then
      ``hessian_largest_2`` and so on up to k. Each with ``..._bound``, the largest distance of an
      eigenvalue from it, in units of loss per weight².
    - ``hessian_missed_probability``: Bound on the probability that an eigenvalue further out was
      missed; 0 where all are known, 1 where a search failed.
    - ``hessian_products``: Number of products with one vector; 0 where all eigenvalues are known.
    - ``hessian_index``: Share of negative eigenvalues, in [0, 1], with ``..._standard_error`` over
      probes (0 where all are known), the ends ``..._low`` and ``..._high`` of its 95 % interval,
      and ``..._threshold``: eigenvalues down to minus this count as zero. If asked for.

    Args:
        loss: ``"square"``, ``"cross_entropy"``, or a callable, as `curvature_operator` takes it.
        data: Data as `curvature_operator` takes them, of any floating dtype; usually a fixed part
            of the training data, as the net sees them without augmentation. A loader that shuffles
            draws from torch's generator, which is seeded here too.
        k: Number of eigenvalues at each end.
        index: Whether to find the index, which takes ``probes * steps`` more products where not
            all eigenvalues are computed.
        matrix: ``"hessian"``, ``"gauss_newton"``, ``"fisher"``, ``"fisher_mc"`` (one draw) or
            ``"empirical_fisher"``.
        parameters: Names or patterns of parameters; None for all trainable ones.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        dense: Largest number of parameters for which all eigenvalues are computed, on a float64
            copy of the net; beyond, or with 0, they come from products in the net's own precision.
        tolerance: Largest distance of an extreme eigenvalue from its estimate, relative to |λ|.
        probes: Number of random vectors for the index.
        steps: Lanczos steps of each of them.
        seed: Seed of the whole training's random vectors, which differ from step to step.
        prefix: Prefix of every name, to tell several such callbacks apart.

    Returns:
        The callback, ``(net, moment) -> numbers``; it leaves the net as it was. Calling it raises
        a ValueError where data, net and loss do not fit one another, in ``train`` before the first
        step.

    Raises:
        ValueError: If a name is unknown, a number out of range, parameters are given as tensors,
            which would be those of one net, or data can be read only once.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Figures 5 and 6, which
        show such curves for n-shortcut nets.

    Example:
        Half of x²: the curvature is 1 wherever gradient descent stands.

        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(net.weight, 2.0)
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> callback = rt.curvature_callback("square", data, index=True)
        >>> recipe = rt.Recipe(
        ...     loss="square", epochs=2, batch=4, lr=0.5, momentum=0.0, weight_decay=0.0,
        ...     augmentation="none", milestones=(), precision="float64",
        ... )
        >>> run = rt.train(
        ...     net, data, recipe, seed=0, device="cpu", callbacks=[callback], progress=False
        ... )
        >>> run.column("gradient_norm"), run.column("hessian_largest"), run.column("hessian_index")
        ([2.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    """
    scored = Loss.of(loss)
    listed = parameters if isinstance(parameters, (list, tuple)) else [parameters]
    if any(isinstance(given, Tensor) for given in listed):
        raise ValueError("parameters: got a tensor, which is that of one net; needs names")
    if not isinstance(prefix, str):
        raise ValueError(f"prefix: got {prefix!r}, needs a string")
    Data.of(data, pairs=not scored.takes_batches).check_rewindable("every measurement")
    check_int("k", k)
    check_choice("matrix", matrix, tuple(MATRICES))
    check_choice("batchnorm", batchnorm, ("eval", "batch"))
    check_int("dense", dense, 0)
    check_positive("tolerance", tolerance)
    check_int("probes", probes)
    check_int("steps", steps)
    check_seed("seed", seed)

    def measure(net: nn.Module, moment: TrainingMoment) -> dict[str, float]:
        net = check_net(net, finite=False)
        digest = hashlib.sha256(f"curvature {seed} {moment.step}".encode()).digest()
        step_seed = int.from_bytes(digest[:8], "big") >> 1  # far from those of the steps nearby
        with preserved(net):
            # A loader that shuffles takes its order from here, whatever was drawn before.
            torch.default_generator.manual_seed(step_seed)
            known = trainable_by_name(net)
            names = select_parameters("parameters", parameters, known, net)
            every = sum(known[name].numel() for name in names) <= dense
            wide = copied(net).double() if every else net
            options = {"matrix": matrix, "parameters": parameters, "batchnorm": batchnorm,
                       "generator": seed}  # fmt: skip
            operator = curvature_operator(wide, scored, data, **options)
            beside = operator.risk.found.read_beside
            if every and any(leaf is p for leaf in beside for p in net.parameters()):
                operator = curvature_operator(net, scored, data, **options)  # the copy is not read
            report = spectrum(
                operator, k=k, density=index, method="dense" if every else "matrix-free",
                tolerance=tolerance, probes=probes if index else 1, steps=steps,
                generator=step_seed,
            )  # fmt: skip
        numbers = {
            "measured_loss": operator.loss,
            "gradient_norm": operator.gradient.norm().item(),
            **_outermost(f"{matrix}_largest", report.largest),
            **_outermost(f"{matrix}_smallest", report.smallest),
            f"{matrix}_missed_probability": (
                1.0 if report.pairs is None else report.pairs.missed_probability
            ),
            f"{matrix}_products": report.products,
        }
        if index and report.index is not None:
            numbers |= {
                f"{matrix}_index": report.index.value,
                f"{matrix}_index_standard_error": report.index.standard_error,
                f"{matrix}_index_low": report.index.low,
                f"{matrix}_index_high": report.index.high,
                f"{matrix}_index_threshold": report.index_threshold,
            }
        return {prefix + name: value for name, value in numbers.items()}

    return measure


def _outermost(name: str, ends: tuple[Estimate, ...]) -> dict[str, float]:
    """Eigenvalues with their bounds, outermost first."""
    numbers = {}
    for place, end in enumerate(ends, 1):
        key = name if place == 1 else f"{name}_{place}"
        numbers[key], numbers[f"{key}_bound"] = end.value, end.high - end.value
    return numbers
