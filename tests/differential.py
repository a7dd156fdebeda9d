"""Random nets, losses and batchings, and what torch's double autograd says of them.

Nothing of the library is imported here. The loss is computed directly, on the whole data in one
piece; only a loss of (net, batch), and nets or losses whose samples know each other, may also be
measured batch by batch, weighted by samples.
"""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from oracles import fisher_by_samples, gauss_newton_by_jacobians, hessian_by_nested_gradients
from random_losses import CLASS_WEIGHTS, IGNORED, LOSSES, Pair, classes, penalty, square
from random_nets import CLASSES, NETS, TIMES, NormalizedWeight, call, like, rows_of, tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset

# Batchings ----------------------------------------------------------------------------------------


class Samples(Dataset):
    """The samples of a case one by one."""

    def __init__(self, case: "Case") -> None:
        self.case = case

    def __len__(self) -> int:
        return self.case.samples

    def __getitem__(self, i: int) -> tuple[Any, Tensor]:
        return rows_of(self.case.x, i), self.case.y[i]


PAIRS = (
    "one", "equal", "unequal", "last of one", "ones", "sorted", "permuted", "loader",
    "shuffling loader", "triples", "arrays", "dataset", "object", "dicts", "objects",
    "sample weights",
)  # fmt: skip
CONTENTS = ("one", "equal", "unequal", "last of one", "loader", "dicts", "objects")


def places(name: str, case: "Case") -> list[Tensor]:
    """The samples of each batch."""
    m, draw = case.samples, case.random
    order = torch.arange(m)
    if name in ("one", "arrays", "dataset", "object"):
        return [order]
    if name == "ones":
        return list(order.split(1))
    if name == "last of one":
        return [order[: m // 2], order[m // 2 : -1], order[-1:]]
    if name == "sorted":  # by the first label or value of each sample
        order = case.y.reshape(m, -1)[:, 0].argsort(stable=True)
    if name == "permuted":
        order = torch.randperm(m)
    if name in ("equal", "permuted", "loader", "shuffling loader", "triples"):
        return list(order.split(draw.choice([2, 3, 4])))
    cuts = sorted(draw.sample(range(1, m), draw.choice([1, 2, 3])))
    return list(order.tensor_split(cuts))


def arranged(name: str, case: "Case", parts: list[Tensor]) -> Any:
    """The data as a user would give them."""
    pairs = [(rows_of(case.x, part), case.y[part]) for part in parts]
    if name == "dicts":
        return [{"x": x, "y": y} for x, y in pairs]
    if name == "objects":
        return [Pair(x, y) for x, y in pairs]
    if name == "sample weights":
        weights = [case.sample_weights[part] for part in parts]
        return [
            {"x": x, "y": y, "sample_weight": w} for (x, y), w in zip(pairs, weights, strict=True)
        ]
    if name == "one":
        return pairs if case.loss_row.batch else pairs[0]
    if name == "object":
        return Pair(*pairs[0])
    if name == "dataset":
        return Samples(case)
    if name == "arrays":
        return case.x.numpy(), case.y.numpy()
    if name == "triples":
        return [(*pair, part) for pair, part in zip(pairs, parts, strict=True)]
    if name.endswith("loader"):
        generator = torch.Generator().manual_seed(case.seed)
        shuffle = name.startswith("shuffling")
        return DataLoader(Samples(case), len(parts[0]), shuffle=shuffle, generator=generator)
    return pairs


def rounded(side: Any) -> Any:
    """The nearest numbers in float32, in float64."""
    if isinstance(side, Mapping):
        return {key: rounded(value) for key, value in side.items()}
    if isinstance(side, tuple):
        return tuple(map(rounded, side))
    return side.float().double() if side.is_floating_point() else side


# Cases --------------------------------------------------------------------------------------------


class Case:
    """A net, a loss and data in batches, drawn by a seed; every loss has its turn.

    Attributes:
        net: In train or eval mode; measured in eval mode.
        loss: A name or a function.
        data: In batches, as a user would give them.
        sample_weights: Beside the targets, or None.
        chunk: Most samples of a graph, or None.
        engine: Of products.
        single: Whether the net is in float32, and so are the values of the data.
        weight_decay: λ, 0 in most.
        rows: Names of the parameters that a matrix has rows for; None for all.
        mixes: Whether BatchNorm takes the statistics of each batch, which then stays whole.
        free: Whether batches and order must not matter.
        coupled: Whether samples know each other, by the net or the loss, or the loss is no weighted
            mean; then a refusal is right, too.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.sample_weights: Tensor | None = None
        self.loss_name = list(LOSSES)[seed % len(LOSSES)]
        row = self.loss_row = LOSSES[self.loss_name]
        fitting = [
            name for name, net in NETS.items()
            if net.form in row.forms and (net.plain or not row.plain)
        ]  # fmt: skip
        self.net_name = self.random.choice(fitting)
        self.net_row = NETS[self.net_name]
        self.form = self.net_row.form
        self.coupled = self.net_row.coupled or row.divides == "nothing"
        before = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]):
            try:
                torch.set_default_dtype(torch.float64)
                torch.manual_seed(seed)
                self.samples = self.random.randint(5, 8)
                self.net = self.net_row.make()
                self.x = self.net_row.inputs(self.samples)
                self.y = self._targets(row.targets)
                self.batching = self.random.choice(self._batchings())
                if self.batching == "sample weights":
                    self.sample_weights = torch.rand(self.samples).round(decimals=1)  # some are 0
                    self.sample_weights[0] = 1.0
                self.parts = places(self.batching, self)
            finally:
                torch.set_default_dtype(before)
        if self.random.random() < 0.15 and len(list(self.net.parameters())) > 1:
            next(self.net.parameters()).requires_grad_(False)
        self.net.train(self.random.random() < 0.5)
        self._choice = self.random.randrange(1000)
        self._draw_options()
        self.loss = row.make(self, self.net)
        self.data = arranged(self.batching, self, self.parts)
        self.chunk = None if row.batch else self.random.choice([None, None, 1, 2, 3, 100])
        self.engine = self.random.choice(["auto", "retained", "rebuilt"])
        self.free = not (self.coupled or row.batch or self.mixes)

    def _draw_options(self) -> None:
        """Precision, weight decay, rows and BatchNorm, each as usual in most cases."""
        draw = self.random
        self.single = draw.random() < 0.15
        if self.single:
            self.net.float()
            self.x, self.y = (rounded(side) for side in (self.x, self.y))
        self.weight_decay = draw.choice([0.0, 0.0, 0.3])
        names = [name for name, p in self.net.named_parameters() if p.requires_grad]
        some = draw.random() < 0.15 and len(names) > 1
        self.rows = draw.sample(names, draw.randrange(1, len(names))) if some else None
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.net.modules())
        # The batches of a loader that shuffles are not known.
        known = self.batching != "shuffling loader"
        self.mixes = norms and known and draw.random() < 0.4

    @property
    def divides(self) -> str:
        """What the loss divides by; under a penalty that of one of three losses."""
        if self.loss_row.decays and not self.loss_row.batch:
            return str(self.choose(["samples", "class weights", "sum"]))
        return self.loss_row.divides

    def _batchings(self) -> list[str]:
        unfit = set()
        if not isinstance(self.x, Tensor):
            unfit.add("arrays")
        if self.coupled or self.loss_row.decays:
            unfit.add("sample weights")
        return [n for n in (CONTENTS if self.loss_row.batch else PAIRS) if n not in unfit]

    def choose(self, options: Sequence[Any]) -> Any:
        """The same one whenever a loss is made."""
        return options[self._choice % len(options)]

    def __str__(self) -> str:
        sizes = "+".join(str(len(part)) for part in self.parts)
        return (
            f"seed {self.seed}: {self.net_name}; loss {self.loss_name}; {self.batching} "
            f"({sizes}); chunk {self.chunk}; {self.engine}; "
            f"{'float32' if self.single else 'float64'}; decay {self.weight_decay}; rows of "
            f"{self.rows or 'all'}{'; statistics of batches' * self.mixes}"
        )

    def _targets(self, kind: str) -> Tensor:
        m = self.samples
        inner = {"vector": (), "scalar": (), "pixels": (2, 2)}.get(self.form, (TIMES,))
        if kind in ("labels", "padded"):
            shares = torch.tensor([0.6, 0.3, 0.1])
            count = m * max(1, torch.Size(inner).numel())
            labels = shares.multinomial(count, replacement=True).reshape(m, *inner)
            if kind == "padded":
                if self.form == "pixels" or not inner:
                    labels[torch.rand(labels.shape) < 0.4] = IGNORED
                else:
                    lengths = torch.randint(0, TIMES + 1, (m, 1))
                    labels[torch.arange(TIMES) >= lengths] = IGNORED
                labels.view(m, -1)[0, 0] = 1  # at least one is valid
            return labels
        if kind == "probabilities":
            return torch.rand(m, CLASSES).softmax(1)
        if kind == "weighted":
            return torch.cat([torch.randn(m, CLASSES), torch.rand(m, 1) + 0.1], 1)
        if self.form == "scalar":
            return torch.randn(m)
        return torch.randn(m, CLASSES, 2, 2) if inner == (2, 2) else torch.randn(m, *inner, CLASSES)

    # -- right answers --

    @cached_property
    def reference(self) -> nn.Module:
        """The net in eval mode and float64, with weight normalization that torch differentiates."""
        net = copy.deepcopy(self.net).double().eval()
        for module_ in net.modules():
            if self.mixes and isinstance(module_, nn.modules.batchnorm._BatchNorm):
                module_.train()
            if isinstance(module_, nn.utils.parametrize.ParametrizationList):
                if isinstance(module_[0], parametrizations._WeightNorm):
                    module_[0] = NormalizedWeight()
        return net

    @cached_property
    def parameters(self) -> list[Tensor]:
        named = self.reference.named_parameters()
        return [p for n, p in named if p.requires_grad and (self.rows is None or n in self.rows)]

    @cached_property
    def _function(self) -> Any:
        made = self.loss_row.make(self, self.reference)
        if made == "square":
            return square
        if made == "cross_entropy":
            soft = self.loss_row.targets == "probabilities"
            return F.cross_entropy if soft else classes(self)
        return made

    def _value(self, part: Any) -> Tensor:
        x, y = rows_of(self.x, part), self.y[part]
        if self.loss_row.batch:
            return self._function(self.reference, (x, y))
        return self._function(call(self.reference, x), y)

    def _gauss_newton(self, part: Any) -> Tensor:
        output = call(self.reference, rows_of(self.x, part))
        leaves = tensors(output)

        def loss(point: Tensor) -> Tensor:
            moved = point.split([leaf.numel() for leaf in leaves])
            pairs = zip(moved, leaves, strict=True)
            again = like(output, [flat.view(leaf.shape) for flat, leaf in pairs])
            return self._function(again, self.y[part])

        flat = torch.cat([leaf.reshape(-1) for leaf in leaves])
        matrix = gauss_newton_by_jacobians(flat, loss, self.parameters)
        if self.loss_row.decays:
            own = penalty(self.reference)
            matrix = matrix + hessian_by_nested_gradients(own, self.parameters)
        return matrix

    def _of_parts(self, matrix: str, parts: list[Tensor]) -> Tensor:
        total: Any = 0.0
        for share, part in self._shares(parts):
            value = self._value(part)
            if matrix in ("loss", "evaluation"):
                exact = value.detach()
            elif matrix == "gradient":
                grads = torch.autograd.grad(value, self.parameters, materialize_grads=True)
                exact = torch.cat([g.reshape(-1) for g in grads])
            elif matrix == "hessian":
                exact = hessian_by_nested_gradients(value, self.parameters)
            else:
                exact = self._gauss_newton(part)
            total = total + share * exact
        return total

    def _shares(self, parts: list[Tensor]) -> Iterator[tuple[float, Tensor]]:
        """Parts with their shares of the loss; with weights of samples, these one by one."""
        weights = self._weights()
        total = 1.0 if self.divides == "sum" else float(weights.sum())
        if self.sample_weights is None:
            for part in parts:
                if self.mixes and not self.loss_row.batch:
                    yield (
                        (1.0 if self.divides == "sum" else float(weights[part].sum()) / total),
                        part,
                    )
                else:
                    yield len(part) / self.samples, part
            return
        for i, weight in enumerate(weights.tolist()):
            if weight > 0:
                yield weight / total, torch.tensor([i])

    def _weights(self) -> Tensor:
        """Weight of each sample in the mean."""
        divides, y = self.divides, self.y
        weights = torch.ones(self.samples, dtype=torch.float64)
        if divides == "sample weights":
            weights = y[:, -1]
        if divides in ("class weights", "valid labels"):
            one = torch.ones_like(CLASS_WEIGHTS)
            factors = CLASS_WEIGHTS if divides == "class weights" else one
            each = torch.where(y == IGNORED, 0.0, factors[y.clamp(0)])
            weights = each.reshape(self.samples, -1).sum(1)
        return weights if self.sample_weights is None else weights * self.sample_weights

    def _fisher(self) -> Tensor:
        """Weighted mean of g g^T, g the gradient of a sample's own loss; of a sum, the sum."""
        weights = self._weights()
        total = 1.0 if self.divides == "sum" else weights.sum()
        # The oracle takes the mean over the samples that count.
        count = int((weights > 0).sum())
        losses = [
            (weights[i] * count / total).sqrt() * self._value(torch.tensor([i]))
            for i in range(self.samples) if weights[i] > 0
        ]  # fmt: skip
        return fisher_by_samples(losses, self.parameters)

    def exact(self, matrix: str) -> list[Tensor]:
        """Every right answer, none if undefined.

        Where batches may matter, both of the whole set in one piece and of the batches as given.

        Args:
            matrix: loss, gradient, hessian, gauss_newton, empirical_fisher, or
                evaluation, which is the loss without weight decay.

        Returns:
            The answers.
        """
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), torch.enable_grad():
            answers = self._plain(matrix)
        if matrix == "evaluation" or not self.weight_decay:
            return answers
        point = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        beside = {"loss": 0.5 * point @ point, "gradient": point}.get(
            matrix, torch.eye(len(point), dtype=point.dtype)
        )
        return [answer + self.weight_decay * beside for answer in answers]

    def _plain(self, matrix: str) -> list[Tensor]:
        row, whole = self.loss_row, [torch.arange(self.samples)]
        undefined = row.batch or row.decays or self.coupled or self.mixes
        if matrix == "empirical_fisher" and undefined or matrix == "gauss_newton" and row.batch:
            return []
        if matrix == "empirical_fisher":
            return [self._fisher()]
        several = len(self.parts) > 1
        if self.mixes and (
            self.sample_weights is not None or self.divides == "nothing" and several
        ):
            return []
        # Where batches may matter, they may also be kept as they are given.
        alone = row.batch or self.mixes
        answers = [] if alone else [self._of_parts(matrix, whole)]
        if alone or self.coupled and several:
            try:
                answers.append(self._of_parts(matrix, self.parts))
            except ValueError:  # torch's BatchNorm of one sample
                pass
        return answers
