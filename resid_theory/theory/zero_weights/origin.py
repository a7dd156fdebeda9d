r"""The Hessian of n-shortcut networks at zero weights, in closed form ("Theorem 2").

At zero weights every block returns its input, so the output is x itself. Write
:math:`g_\mu` and :math:`H_\mu` for the gradient and Hessian of a sample's loss there,
:math:`s_\mu = \sigma_{pre}(x_\mu)`, and

.. math:: M = \tfrac1m \sum_\mu g_\mu s_\mu^T \quad (\text{square loss, no } \sigma_{pre}:\; M =
S_{xx} - S_{yx}),
    \qquad c_n = \sigma_{mid}'(0)^{n-1} \sigma_{post}'(0).

* n >= 3: all derivatives up to order n - 1 vanish; the loss moves by
  :math:`c_n \sum_r \langle M, W^{r,n} \cdots W^{r,1} \rangle`.
* n = 2: every block contributes the eigenvalues :math:`\pm |c_2| s_i(M)`, each as often as the
  block is wide inside. Neither depth nor width nor activation changes their ratio.
* n = 1: block Toeplitz, not stationary; the largest eigenvalue grows in proportion to depth.
"""

import math
from itertools import chain
from typing import Any

from torch import Tensor

from resid_theory._check import check_int
from resid_theory.activations import Activation
from resid_theory.data import Data
from resid_theory.data.batch import join
from resid_theory.data.moments import Moments
from resid_theory.data.regression import one_hot
from resid_theory.losses import Loss, LossLike
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.layout import Layout
from resid_theory.theory.zero_weights.layout_hessian import hessian_at_zero
from resid_theory.theory.zero_weights.prediction import ZeroPoint
from resid_theory.theory.zero_weights.relu_limits import check_direction, is_direction
from resid_theory.theory.zero_weights.row_maps import RowMaps
from resid_theory.theory.zero_weights.zero_point_statistics import LossAtZero, flushed


def zero_point(
    data: Any, *, blocks: int | None = None, shortcut_depth: int | None = None,
    layout: Layout | None = None, loss: LossLike = "square", pre: str | Activation | None = None,
    mid: str | Activation | None = None, post: str | Activation | None = None,
    hidden: int | None = None, bias: bool = False, last_bias: bool = False, norm: Any = None,
    norm_at: str = "branch", input_map: Any = None, output_map: Any = None, kink: Any = "line",
    exact: bool = False,
) -> ZeroPoint:  # fmt: skip
    r"""Hessian at zero weights of an n-shortcut net or any layout, predicted without the net.

    Cost and memory do not depend on ``blocks`` for n >= 2; for n = 1 they do only when an exact
    eigenvalue is asked for.

    Args:
        data: x (m, q) and y (m, k), or class labels y (m,), which become one-hot for a loss of
            values: a pair, a ``Regression``, a loader; ``Moments`` suffice for the square loss
            without ``pre`` and ``bias``.
        blocks: Number of blocks R, at least 1.
        shortcut_depth: Weight matrices n under one shortcut, at least 1.
        layout: Any other wiring, with blocks and matrices of its own.
        loss: ``"square"``, ``"cross_entropy"``, or a callable (output, target) -> mean over
            samples.
        pre: Activation before a block's first matrix; only its values (n = 1: also its slopes) at
            the data enter.
        mid: Activation between matrices; must vanish at zero.
        post: Activation after a block's last matrix; must vanish at zero.
        hidden: Width h inside a block; by default ``d``, that of the input.
        bias: Whether the first matrix of a block has a bias (equation (3)).
        last_bias: Whether the last one has, for n >= 2; zero is then not stationary.
        norm: Normalization of samples one by one, a callable (m, width) -> (m, width) with its own
            gains, or one for each block. One behind the net belongs to ``loss``.
        norm_at: ``"branch"``, in front of ``pre``; ``"stream"``, behind each sum (post-LN, n >= 2);
            or ``"write"``, of what a block adds (n >= 2), where its slope at zero counts.
        input_map: Fixed map U in front of the network, (d, q), None for the identity; where x and
            y differ in width, such a map or :func:`resid_theory.data.whiten` makes them equal.
        output_map: Fixed map V behind the network, (k, d), None for the identity.
        kink: Rule for the derivatives of an activation with a kink at zero (ReLU):
            ``"line"``, the least-squares line on [-e, e], slope (left + right) / 2 and no
            curvature; ``"mean"``, the mean over symmetric random directions of the a.e. Hessian's
            limit (differs from ``line`` only for n = 1 with ``post``); or a net, whose weights give
            the direction along which zero is approached.
        exact: For n = 1 at great depth: whether ``summary`` counts eigenvalues, which is slow,
            instead of using the limits of great depth.

    Returns:
        The prediction: ``print`` shows a report, ``summary()`` returns its numbers, and
        :func:`resid_theory.plots.zero_point` draws it.

    Raises:
        ValueError: If data, counts, names or widths do not fit, an activation does not vanish at
            zero or lacks a derivative, or products of a layout are out of the range of floats.

    Source:
        Li et al., arXiv:1611.01186, Theorem 2 and Assumption 3. Bias, hidden width, cross-entropy,
        fixed maps and the limits at kinks are derived here.

    Example:
        >>> data = rt.Moments(sxx=2 * torch.eye(3), syx=torch.eye(3), syy=torch.eye(3), count=9)
        >>> zero_point(data, blocks=100_000, shortcut_depth=2).condition_number
        1.0
        >>> point = zero_point(rt.load_whitened("digits"), blocks=50, shortcut_depth=2, mid="relu")
        >>> point.verdict, point.index
        ('strict saddle', 0.5)
        >>> round(point.escape_time, 3)  # learning rate times steps, from weights of 0.01 to 0.1
        3.662
    """
    maps = {"input_map": input_map, "output_map": output_map}
    if layout is None:
        count, matrices = check_int("blocks", blocks), check_int("shortcut_depth", shortcut_depth)
        layout = Layout.shortcut(count, branch=matrices)
    elif not isinstance(layout, Layout):
        raise ValueError(f"layout: got {type(layout).__name__}, needs a theory.Layout")
    elif blocks is not None or shortcut_depth is not None:
        raise ValueError("layout: has blocks and shortcut_depth of its own, got them as well")
    layout.check_range()
    norms = RowMaps.of(norm, norm_at, layout.blocks)
    acts = {"pre": pre, "mid": mid, "post": post}
    net = Architecture.of(layout, (bool(bias), bool(last_bias)), acts, maps, norms)
    directed, scored = is_direction(kink), Loss.of(loss)
    is_one_stream = layout.is_shortcut and not norms.at
    net.check_parts(directed or kink != "line", is_one_stream)
    data, labels = _with_targets(data, net, scored)
    samples = net.is_featured or last_bias or directed or net.bend(kink)
    if scored.identity and not samples:
        local = LossAtZero.of_moments(Moments.of(data), net)
    elif isinstance(data, Moments):
        raise ValueError(
            "data: got Moments, which suffice for the square loss without pre, norm, biases, a "
            "direction or (for n = 1) a curved post; needs the samples (x, y) here"
        )
    else:
        local = LossAtZero.of_samples(data, net, scored, labels)
    d = local.width if layout.widths is None else layout.widths[0][0]  # as LayoutNet takes it
    h = d if hidden is None else check_int("hidden", hidden)
    if net.n == 1 and h != d:
        raise ValueError(f"hidden: got {hidden} with shortcut_depth=1, needs shortcut_depth >= 2")
    if directed:
        check_direction(kink, net, h, local.width)
    shift = None
    if last_bias:
        shift = flushed(local.gradients.mean(0), float(local.gradients.abs().mean()))
        moved = layout.passed_back(net.post.slope * shift[None])
        shift = shift * any(bool(g.any()) for g in moved)
    return ZeroPoint(
        wiring=layout.name, blocks=layout.blocks, shortcut_depth=layout.branch, hidden=h,
        slope=net.slope, shift=shift, exact=exact,
        a_priori_bound=local.a_priori_bound if net.n == 2 and is_one_stream else math.inf,
        null_direction=scored.null_direction and output_map is None, notes=net.notes(kink),
        **hessian_at_zero(net, local, h, kink),
    )  # fmt: skip


def _with_targets(data: Any, net: Architecture, loss: Loss) -> tuple[Any, Tensor | None]:
    """Moments, or batches to be read once, with one-hot targets; labels for a loss of these."""
    if isinstance(data, Moments):
        return data, None
    batches = iter(Data.of(data).unweighted())
    first = next(batches)
    y = first.target
    if not isinstance(y, Tensor) or y.dim() != 1 or y.is_floating_point():
        return (batch.pair for batch in chain([first], batches)), None
    x, labels = join([first, *batches]).pair  # all labels tell how many classes there are
    check_int("data y", int(labels.min()), 0)
    classes, kept = int(labels.max()) + 1, loss.targets in ("labels", "any")
    if kept and x.dim() == 2:  # outputs are classes, also those without a sample
        classes = max(classes, net.widths(x.shape[1])[1])
    return (x, one_hot(labels, classes)), labels.long() if kept else None
