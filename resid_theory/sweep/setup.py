"""An n-shortcut net, its start and its data, by names that options and files can give.

Torch is imported inside the functions, so that ``--help`` need not wait for it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resid_theory.data.regression import Regression
    from resid_theory.networks.shortcut import ShortcutNet
    from resid_theory.theory import ZeroPoint


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A net, its start and its data.

    Attributes:
        data: Name of an image set such as ``digits`` or ``mnist``, or an ``.npz`` of arrays
            x (m, ...) and y, labels (m,) or targets (m, k); x is whitened.
        components: Principal components kept, the net's width d.
        blocks: Number of blocks R.
        shortcut_depth: Layers n under one shortcut.
        plain: Whether the shortcuts are left out.
        hidden: Width inside a block; d by default.
        bias: Whether each block's first layer has a bias.
        pre: Activation before a block, such as ``relu`` or ``tanh``.
        mid: Activation between the layers of a block, such as ``relu`` or ``tanh``.
        post: Activation after a block's last layer, such as ``relu`` or ``tanh``.
        init: Initialization: ``xavier``, ``orthogonal``, ``kaiming``, ``zero`` or ``near_zero``.
        scale: Factor of ``near_zero``.
        loss: ``square`` or ``cross_entropy``.
    """

    data: str = "digits"
    components: int = 10
    blocks: int = 4
    shortcut_depth: int = 2
    plain: bool = False
    hidden: int | None = None
    bias: bool = False
    pre: str | None = None
    mid: str | None = None
    post: str | None = None
    init: str = "near_zero"
    scale: float = 0.01
    loss: str = "square"

    def check(self) -> None:
        """Raise a ValueError if names and sizes do not fit; before a download."""
        from resid_theory._check import check_choice
        from resid_theory.data.datasets import IMAGE_SETS
        from resid_theory.initializations import initializations_for
        from resid_theory.losses import LOSSES

        named = not self.data.endswith(".npz")
        if named:
            check_choice("data", self.data, [*IMAGE_SETS, "a name ending in .npz"])
        check_choice("init", self.init, initializations_for("matrix"))
        check_choice("loss", self.loss, [n for n, loss in LOSSES.items() if not loss.takes_batches])
        replace(self, blocks=min(self.blocks, 1)).net(0)
        if named:
            self._check_targets(len(IMAGE_SETS[self.data].classes))

    def _check_targets(self, targets: int) -> None:
        if targets != self.components:
            raise ValueError(
                f"components: got {self.components}, needs {targets}: the net has as many outputs "
                f"as inputs, {self.data} has {targets} targets"
            )

    def net(self, seed: int) -> "ShortcutNet":
        """A new float64 net with weights drawn from a seed."""
        from resid_theory.networks.shortcut import ShortcutNet, initialize

        sizes = self.components, self.blocks, self.shortcut_depth
        net = ShortcutNet(*sizes, shortcut=not self.plain, **self._inside())
        return initialize(net, self.init, generator=seed, scale=self.scale)

    def _inside(self) -> dict[str, Any]:
        """Options of a block, as the net and its prediction take them."""
        return {name: getattr(self, name) for name in ("hidden", "bias", "pre", "mid", "post")}

    def load(self, *, progress: bool) -> "Regression":
        """Whitened inputs and targets, (m, d) each; names and sizes are checked first."""
        from resid_theory.data import load_whitened

        self.check()
        if not self.data.endswith(".npz"):
            return load_whitened(self.data, self.components, progress=progress)
        data = own_data(self.data, self.components)
        self._check_targets(data.y.shape[1])
        return data

    def zero_point(self, data: Any, **keywords: Any) -> "ZeroPoint":
        """The prediction at zero weights."""
        from resid_theory.theory import zero_point

        return zero_point(
            data,
            blocks=self.blocks,
            shortcut_depth=self.shortcut_depth,
            loss=self.loss,
            **self._inside(),
            **keywords,
        )


def own_data(path: str, components: int) -> "Regression":
    """Whitened data of an ``.npz`` of arrays x (m, ...) and y, labels (m,) or targets (m, k)."""
    from resid_theory._check import as_tensor
    from resid_theory.data import one_hot, whiten
    from resid_theory.data.regression import Regression
    from resid_theory.runtime.store import read_arrays

    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        raise ValueError(f"data: there is no file {path}; needs one with arrays x and y") from None
    except ValueError as error:
        raise ValueError(f"data: {error}") from error
    if not {"x", "y"} <= set(arrays):
        raise ValueError(f"data: {path} has arrays {sorted(arrays)}, needs x and y")
    x, y = as_tensor("data x", arrays["x"]), as_tensor("data y", arrays["y"])
    if x.dim() < 2 or y.dim() not in (1, 2) or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"data: {path} has x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)}, needs "
            "x (m, ...), and labels (m,) or targets (m, k)"
        )
    targets = one_hot(y, int(y.max()) + 1) if y.dim() == 1 else y.double()
    whitened, _ = whiten(x.flatten(1), components)
    return Regression(whitened, targets)
