"""Models and batches as transformers has them: labels among the inputs, logits in a mapping."""

from collections import OrderedDict, UserDict
from types import SimpleNamespace

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.utils.data import DataLoader

import resid_theory as rt
from resid_theory.data.model_labels import labels_are_next

WORDS, TOKENS = 7, 5


class Output(OrderedDict):
    """Like a ModelOutput: a mapping whose entries are attributes, too."""

    def __getattr__(self, name):
        return self[name]


class Encoding(UserDict):
    """Like a BatchEncoding."""


class Language(nn.Module):
    """A model of tokens that attends to those before, or to all that the mask lets through."""

    def __init__(self, causal, *, own="mean", decodes=False):
        super().__init__()
        torch.manual_seed(0)
        self.causal, self.own = causal, own
        self.config = SimpleNamespace(is_encoder_decoder=decodes)
        self.words, self.head = nn.Embedding(WORDS, 3), nn.Linear(3, WORDS)
        self.double()

    def forward(self, input_ids=None, attention_mask=None, labels=None, shared=None):
        h = self.words(input_ids)
        if shared is not None:
            shared.add_(1)
        if self.config.is_encoder_decoder:
            h = h + self.words(labels.clamp(min=0).roll(1, 1))
        seen = attention_mask[:, None, :].bool().expand(-1, TOKENS, -1)
        if self.causal:
            seen = seen & torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        scores = (h @ h.mT).masked_fill(~seen, -1e9)
        logits = self.head(torch.tanh(h + scores.softmax(-1) @ h))
        output = Output(logits=logits)
        if labels is not None:
            pair = (logits[:, :-1], labels[:, 1:]) if self.causal else (logits, labels)
            flat = [part.flatten(0, 1) for part in pair]
            smoothing = 0.3 if self.own == "smoothed" else 0.0
            own = F.cross_entropy(*flat, label_smoothing=smoothing)
            if self.own == "samples":
                rows = zip(*pair, strict=True)
                own = torch.stack([F.cross_entropy(*row) for row in rows]).mean()
            if self.own == "balanced":  # as a term that spreads tokens over experts
                own = own + scores.softmax(-1).mean((0, 1)).square().sum()
            if self.own == "with an axis":
                own = own[None]
            if self.own == "pairs" and len(labels) < 2:
                raise RuntimeError("needs pairs")
            if self.own == "none":
                return output
            output = Output(loss=own, logits=logits + 0 if self.own == "beside" else logits)
        return output


def batch(seed=0, samples=6):
    source = torch.Generator().manual_seed(seed)
    mask = (torch.arange(TOKENS) < torch.randint(2, TOKENS + 1, (samples, 1), generator=source)) + 0
    ids = torch.randint(WORDS, mask.shape, generator=source)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def rows(whole, some):
    return {name: part[some] for name, part in whole.items()}


def exact(net, whole):
    """The Hessian of the model's own loss on all samples together."""
    return oracles.hessian_by_nested_gradients(net(**whole).loss, list(net.parameters()))


FORMS = {
    "one batch": lambda b: b,
    "list": lambda b: [rows(b, slice(0, 2)), rows(b, slice(2, 6))],
    "encodings": lambda b: [Encoding(rows(b, slice(0, 4))), Encoding(rows(b, slice(4, 6)))],
    "loader": lambda b: DataLoader([rows(b, k) for k in range(6)], batch_size=4),
    "one by one": lambda b: [rows(b, slice(k, k + 1)) for k in range(6)],
    "more entries": lambda b: [{**b, "idx": torch.arange(6)}],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
@pytest.mark.parametrize("loss", ["cross_entropy", "model"])
def test_curvature_by_one_call(loss, causal, form):
    net, whole = Language(causal), batch()
    if (loss, form) == ("model", "more entries"):
        pytest.skip("a model's own loss gets the batch as it is")
    operator = rt.curvature_operator(net, loss, FORMS[form](whole))
    assert relative_error(operator.dense(), exact(net, whole)) < HESSIAN
    moved = [note for note in operator.notes if "next token" in note]
    assert bool(moved) == (causal and loss == "cross_entropy")


@pytest.mark.parametrize("call", [rt.hessian, rt.spectrum], ids=["hessian", "spectrum"])
def test_other_calls_take_the_same_names(call):
    net, whole = Language(True), batch()
    found, known = (call(net, "cross_entropy", data) for data in (whole, FORMS["list"](whole)))
    if call is rt.spectrum:
        found, known = (report.largest[0].value for report in (found, known))
        assert found == pytest.approx(known, rel=1e-10)
        return
    assert relative_error(found, known) < HESSIAN


def test_targets_that_are_given_stay_where_they_are():
    net, whole = Language(True), batch()
    labels = whole.pop("labels")
    value = F.cross_entropy(net(**whole).logits.flatten(0, 1), labels.flatten())
    known = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    found = rt.curvature_operator(net, "cross_entropy", (whole, labels)).dense()
    assert relative_error(found, known) < HESSIAN


def test_equal_logits_do_not_hide_that_labels_are_moved():
    net, whole = Language(True), batch()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    assert relative_error(rt.hessian(net, "cross_entropy", whole), exact(net, whole)) < HESSIAN


def test_a_decoder_reads_the_labels():
    net, whole = Language(False, decodes=True), batch()
    assert relative_error(rt.hessian(net, "cross_entropy", whole), exact(net, whole)) < HESSIAN
    assert rt.layer_cushions(net, whole).layers == ("head",)


@pytest.mark.parametrize(
    ("own", "loss", "data", "words"),
    [
        ("smoothed", "cross_entropy", lambda b: b, "unknown which belong together"),
        ("beside", "cross_entropy", lambda b: b, "unknown which belong together"),
        ("balanced", "model", FORMS["list"], "no mean over samples or labels"),
        ("pairs", "model", FORMS["list"], r"own loss fails on single samples \(needs pairs\)"),
        ("pairs", "model", lambda b: rows(b, slice(1)), r"^loss: of .* dict: RuntimeError\('needs"),
        ("none", "model", FORMS["list"], "^net: gives Output without 'loss' on a batch with"),
        ("mean", "model", lambda b: [(b["input_ids"], b["labels"])],
         "^data: got a batch tuple; the loss 'model' needs a mapping with 'labels' among them$"),
        ("mean", "model", lambda b: [{"input_ids": b["input_ids"]}],
         r"^data: got a batch \['input_ids'\]; the loss 'model' needs a mapping with 'labels'"),
        ("mean", "square", lambda b: b, "data y"),
    ],
)  # fmt: skip
def test_refusals(own, loss, data, words):
    assert str(rt.Loss.of("model")) == "Loss(model, of='batch')"
    with pytest.raises(ValueError, match=words):
        rt.curvature_operator(Language(True, own=own), loss, data(batch()))


@pytest.mark.parametrize("most", [3, 5])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_means_of_samples_count_by_samples(causal, most):
    net, whole = Language(causal, own="samples"), batch()
    whole["labels"][:, most:] = -100
    found = rt.curvature_operator(net, "model", FORMS["list"](whole)).dense()
    assert relative_error(found, exact(net, whole)) < HESSIAN


def test_a_sample_without_labels_does_not_hide_that_the_first_word_is_not_predicted():
    net, whole = Language(True), batch()
    whole["labels"][0] = -100
    found = rt.curvature_operator(net, "model", FORMS["list"](whole)).dense()
    assert relative_error(found, exact(net, whole)) < HESSIAN


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_first_words_without_a_label_do_not_hide_it_either(causal):
    """In the first batch, as where a prompt is left out."""
    net, whole = Language(causal), batch()
    whole["labels"][:2, 0] = -100
    found = rt.curvature_operator(net, "model", FORMS["list"](whole)).dense()
    assert relative_error(found, exact(net, whole)) < HESSIAN


@pytest.mark.parametrize("own", ["balanced", "pairs"])
def test_a_loss_that_is_no_mean_takes_one_batch(own):
    net, whole = Language(True, own=own), batch()
    assert relative_error(rt.hessian(net, "model", whole), exact(net, whole)) < HESSIAN


def test_evaluation_and_cushions_of_labelled_batches():
    net, whole = Language(True), batch()
    found = rt.evaluate(net, FORMS["list"](whole))
    assert found.loss == pytest.approx(net(**whole).loss.item(), rel=1e-12)
    plain = {name: part for name, part in whole.items() if name != "labels"}
    assert_same(*(rt.layer_cushions(net, data).values for data in (whole, plain)))


class Classifier(nn.Module):
    """Takes labels and computes no loss from them, as a net of the caller's may."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x, labels=None):
        return {"logits": self.layer(x), "loss": None}


@pytest.mark.parametrize("labels", [
    torch.arange(5) % 3, torch.arange(20).view(5, 4) % 3, torch.arange(15.0).view(5, 3),
], ids=["of samples", "of tokens", "values"])  # fmt: skip
@pytest.mark.parametrize("net", [Classifier(), nn.Linear(4, 3).double()], ids=["takes", "not"])
def test_labels_of_a_net_without_a_loss_stay_where_they_are(net, labels):
    x = torch.randn(5, *labels.shape[1 : -1 if labels.is_floating_point() else None], 4).double()
    layer, square = getattr(net, "layer", net), labels.is_floating_point()
    logits = layer(x).detach()
    expected = (
        0.5 * (logits - labels).square().sum() / 5
        if square
        else F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    )
    name = "input" if layer is net else "x"
    data = {name: x, "labels": labels}
    found = rt.evaluate(net, data, loss="square" if square else "cross_entropy")
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_labels_are_found_by_the_loss_of_a_model_in_any_precision(causal, dtype, frozen):
    net, whole = Language(causal).to(dtype).requires_grad_(not frozen), batch()
    rel = 1e-12 if dtype == torch.float64 else 0.02
    assert rt.evaluate(net, whole).loss == pytest.approx(net(**whole).loss.item(), rel=rel)


class Scaled(nn.Module):
    """A causal model whose loss has a factor; keeps the samples it is given."""

    def __init__(self, dtype, factor):
        super().__init__()
        self.layer, self.factor, self.seen = nn.Linear(3, WORDS).to(dtype), factor, []

    def forward(self, x, labels):
        self.seen.append(x[:, 0, 0].tolist())
        logits = self.layer(x)
        parts = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
        return {"loss": self.factor * F.cross_entropy(*parts), "logits": logits}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_loss_may_be_the_one_number_of_an_axis(causal, frozen):
    net, whole = Language(causal, own="with an axis").requires_grad_(not frozen), batch()
    assert labels_are_next(net, whole, whole["labels"]) is causal


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-3), (torch.bfloat16, 4 * 2.0**-7)],
                         ids=str)  # fmt: skip
def test_labels_are_found_by_two_samples_to_a_thousandth_or_four_steps(dtype, share):
    torch.manual_seed(0)
    x = torch.arange(4.0).view(4, 1, 1) * torch.ones(4, 99, 3) + oracles.noise(4, 99, 3) / 9
    x[:, 0, 0] = torch.arange(4.0)
    labels = torch.randint(WORDS, (4, 99))
    labels[0, 9:] = labels[2, 5:] = -100  # samples 1 and 3 have the most
    for factor, right in ((1 + 0.88 * share, True), (1 + 1.12 * share, False)):
        net = Scaled(dtype, factor)
        if right:
            assert labels_are_next(net, {"x": x.to(dtype)}, labels)
        else:
            with pytest.raises(
                ValueError, match="^data: the model's own loss is the cross-entropy"
            ):
                labels_are_next(net, {"x": x.to(dtype)}, labels)
        assert [sorted(some) for some in net.seen] == [[1.0, 3.0]]


def test_a_model_that_overwrites_an_input_overwrites_a_copy():
    whole = batch() | {"shared": torch.zeros(1)}
    rt.evaluate(Language(True), whole)
    assert not whole["shared"].any()


class Regression(nn.Linear):
    """Compares a value for each token with its label."""

    def forward(self, x, labels=None):
        logits = super().forward(x)
        loss = None if labels is None else (logits[..., 0] - labels).square().mean()
        return {"logits": logits, "loss": loss}


def test_values_of_tokens_are_no_words():
    net, x, labels = Regression(4, 1).double(), torch.randn(5, 3, 4), torch.randn(5, 3)
    found = rt.evaluate(net, {"x": x, "labels": labels}, loss=rt.Loss(
        lambda output, target: (output["logits"][..., 0] - target).square().mean()))  # fmt: skip
    assert found.loss == pytest.approx(net(x, labels)["loss"].item(), rel=1e-12)


class Fitted(nn.Linear):
    """A loss of values: the mean over samples of their sums, or over all values."""

    def forward(self, x, labels):
        gaps = (super().forward(x)[..., 0] - labels).pow(4)
        own = gaps.sum() / len(x) if self.out_features == 1 else gaps.mean()
        return {"loss": own}


class Classes(nn.Linear):
    """A cross-entropy divided by samples or by labels, or by what no count divides by."""

    by = "samples"

    def forward(self, x, labels):
        logits = super().forward(x)
        total = F.cross_entropy(logits, labels, reduction="sum")
        counts = {"samples": len(x), "labels": (labels != -100).sum(), "root": len(x) ** 0.5}
        return {"loss": total / counts[self.by]}


@pytest.mark.parametrize("by", ["samples", "labels", "root"])
def test_one_label_for_each_sample(by):
    """The first one and the last of all are compared, of which one has no label."""
    net, x = Classes(4, 3).double(), oracles.noise(6, 4)
    net.by, labels = by, torch.tensor([-100, 0, 1, -100, 2, 1])
    parts = [{"x": x[rows], "labels": labels[rows]} for rows in ([0, 1, 2, 5], [3, 4])]
    if by == "root":
        with pytest.raises(ValueError, match="^loss: the model's own loss is no mean over samples"):
            rt.curvature_operator(net, "model", parts)
        return
    exact = oracles.hessian_by_nested_gradients(net(x, labels)["loss"], list(net.parameters()))
    found = rt.curvature_operator(net, "model", parts)
    assert relative_error(found.dense(), exact) < HESSIAN


@pytest.mark.parametrize("gap", [0.9e-5, -0.9e-5, 1.1e-5, -1.1e-5])
def test_a_mean_of_single_losses_may_be_off_by_steps_of_float32(gap):
    """Relative to the loss of two samples, here about 1e3."""
    net, x = Classes(4, 3).double(), oracles.noise(2, 4)
    labels, own = torch.tensor([1, 2]), {1: 1e3, 2: 1e3 * (1 + gap)}
    net.forward = lambda x, labels: {"loss": torch.tensor(own[len(x)])}
    found = rt.Loss.of("model").weighed(net, {"x": x, "labels": labels})
    if abs(gap) < 1e-5:
        assert not found.whole and float(found.weights({"labels": labels})) == 2
    else:
        assert found.weights is None and "no mean over samples or labels" in found.whole


def test_a_first_batch_of_one_sample():
    net, x, labels = Classes(4, 3).double(), oracles.noise(4, 4), torch.tensor([1, 0, 2, 1])
    parts = [{"x": x[rows], "labels": labels[rows]} for rows in ([0], [1, 2, 3])]
    exact = oracles.hessian_by_nested_gradients(net(x, labels)["loss"], list(net.parameters()))
    assert relative_error(rt.curvature_operator(net, "model", parts).dense(), exact) < HESSIAN


@pytest.mark.parametrize("outputs", [1, 2], ids=["by sample", "by value"])
@pytest.mark.parametrize("places", [(), (3,)], ids=["values", "sequences"])
def test_labels_of_one_shape_count_by_samples(outputs, places):
    net, x, labels = (
        Fitted(4, outputs).double(),
        torch.randn(5, *places, 4),
        torch.randn(5, *places),
    )
    exact = oracles.hessian_by_nested_gradients(net(x, labels)["loss"], list(net.parameters()))
    parts = [{"x": x[rows], "labels": labels[rows]} for rows in (slice(3), slice(3, None))]
    found = rt.curvature_operator(net, "model", parts)
    assert relative_error(found.dense(), exact) < HESSIAN
    if places:
        longer = {"x": torch.randn(2, 4, 4), "labels": torch.randn(2, 4)}
        with pytest.raises(
            ValueError, match=r"^loss: batches have .* shapes \(3,\) and \(4,\) for"
        ):
            rt.curvature_operator(net, "model", [*parts, longer])
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    fitted = [{**part, "labels": 0 * part["labels"]} for part in parts]
    found = rt.curvature_operator(net, "model", fitted)
    assert found.loss == 0.0 and not found.dense().any()
