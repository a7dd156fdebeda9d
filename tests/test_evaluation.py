"""Errors and loss of single crops, on tensors and image folders; the verbs on trained nets."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from verbs import content, error, printed

import resid_theory as rt


def constant(logits):
    """A net that gives the same outputs whatever it sees."""
    net = torch.nn.Linear(1, len(logits))
    torch.nn.init.zeros_(net.weight)
    with torch.no_grad():
        net.bias.copy_(torch.tensor(logits))
    return net


# -- evaluate --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("batch", [1, 4, 100], ids=str)
def test_errors_and_loss_from_their_definitions(generator, device, batch, dtype):
    logits = torch.randn(10, 6, generator=generator).to(dtype)
    labels = torch.randint(6, (10,), generator=generator)
    found = rt.evaluate(torch.nn.Identity().to(device), (logits, labels), top=(1, 3), batch=batch)
    order = logits.argsort(dim=1, descending=True).tolist()
    for k in (1, 3):
        wrong = sum(label not in row[:k] for row, label in zip(order, labels.tolist(), strict=True))
        assert (found.wrong[k], found.error(k)) == (wrong, wrong / 10)
    expected = oracles.cross_entropy(logits.double(), torch.eye(6)[labels])
    assert found.loss == pytest.approx(float(expected), rel=1e-12)
    assert found.samples == 10


@pytest.mark.parametrize(
    ("logits", "wrong"),
    [([1.0, 1.0, 0.0], {1: 2, 2: 1, 3: 0}), ([float("nan"), 2.0, 1.0], {1: 3, 2: 2, 3: 1})],
    ids=["ties go to the earlier class", "nan is never right"],
)
def test_outputs_that_argmax_finds_hard(logits, wrong):
    found = rt.evaluate(constant(logits), (torch.zeros(3, 1), torch.arange(3)), top=(1, 2, 3))
    assert dict(found.wrong) == wrong


@pytest.mark.parametrize(("classes", "usual"), [(4, {1}), (5, {1, 5}), (9, {1, 5})])
def test_top_5_errors_are_usual_from_5_classes_on(classes, usual, capsys):
    logits, labels = torch.zeros(3, classes), torch.zeros(3, dtype=torch.int64)
    assert set(rt.evaluate(torch.nn.Identity(), (logits, labels)).wrong) == usual
    assert capsys.readouterr().err == ""
    rt.evaluate(torch.nn.Identity(), (logits, labels), progress=True)
    assert "evaluation" in capsys.readouterr().err


def test_errors_have_the_intervals_of_wilson():
    logits = torch.tensor([[2.0, 1.0, 0.0]] * 10)
    found = rt.evaluate(torch.nn.Identity(), (logits, torch.tensor([0] * 3 + [1] * 5 + [2] * 2)))
    (row,) = found.frame().to_dict("records")
    share, n, z = 0.7, 10, 1.959963984540054  # E. B. Wilson, 1927
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (row["samples"], row["labels"], row["top_1_error"]) == (10, 10, share)
    assert row["top_1_error_low"] == pytest.approx(middle - half, rel=1e-12)
    assert row["top_1_error_high"] == pytest.approx(middle + half, rel=1e-12)
    tokens = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    frame = rt.evaluate(torch.nn.Identity(), tokens).frame()
    assert not any("low" in name or "high" in name for name in frame)  # they depend on each other


def test_running_statistics_are_used(generator):
    net = rt.diracnet(10)
    x, y = torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4)
    expected = torch.nn.functional.cross_entropy(net.eval()(x), y).detach()
    assert rt.evaluate(net.train(), (x, y)).loss == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "top", "says"),
    [
        ([0, 3], (1,), "class labels from 0 to 3 for 3 outputs"),
        ([0, 1], (1, 5), "top: got 5 for 3 classes"),
        ([0, 1], (0,), "top: got 0"),
        ([0.5, 1.0], (1,), "needs equal shapes or class indices"),
        ([[0.5, 0.5, 0.0]] * 2, (1,), "got targets that are no class numbers .* top=.1. needs"),
        ([-100, -100], (1,), "no target counts"),
    ],
    ids=["label", "top", "zero", "targets", "probabilities", "ignored"],
)
def test_refusals(labels, top, says):
    with pytest.raises(ValueError, match=says):
        rt.evaluate(constant([0.0, 1.0, 2.0]), (torch.zeros(2, 1), torch.tensor(labels)), top=top)


def test_labels_whose_class_weighs_nothing_do_not_count():
    net, data = constant([0.0, 1.0, 2.0]), (torch.zeros(2, 1), torch.tensor([1, 1]))
    for loss in (torch.nn.NLLLoss, torch.nn.CrossEntropyLoss):
        with pytest.raises(ValueError, match="no target counts"):
            rt.evaluate(net, data, loss=loss(torch.tensor([1.0, 0.0, 2.0])))


def test_errors_need_not_be_measured():
    data = torch.zeros(3, 1), torch.arange(3)
    found = rt.evaluate(constant([0.0, 1.0, 2.0]), data, top=())
    assert (found.wrong, found.labels) == ({}, 3)


def test_a_net_that_draws_is_evaluated_batch_by_batch_and_called_so():
    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn_like(x)

    torch.manual_seed(0)
    net, x = Noisy(1, 1), torch.zeros(4000, 1)
    torch.nn.init.zeros_(net.bias)
    found = rt.evaluate(net, (x, x), loss=torch.nn.MSELoss())  # a mean of squares of variance 2
    assert abs(found.loss - 1) < 5 * (2 / 4000) ** 0.5 and "one draw" in found.notes[0]


def test_errors_of_another_k_were_not_measured():
    found = rt.evaluate(constant([0.0, 1.0]), (torch.zeros(1, 1), torch.tensor([0])), top=(1,))
    with pytest.raises(ValueError, match=r"k: got 5, was measured for \[1\]"):
        found.error(5)


# -- a folder of images ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Six classes of one image each, of several sizes, as ImageNet's folders are."""
    pil = pytest.importorskip("PIL.Image", reason="needs Pillow")
    root, generator = tmp_path_factory.mktemp("tree"), torch.Generator().manual_seed(0)
    for number, size in enumerate([(80, 64), (64, 90), (64, 64), (70, 75), (100, 80), (64, 65)]):
        folder = root / f"n{number:04d}"
        folder.mkdir()
        data = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)
        pil.fromarray(data.numpy()).save(folder / "image.png")
    return root


@pytest.mark.parametrize("make", [rt.diracnet_imagenet, rt.resnet_imagenet])
def test_imagenet_nets_train_on_a_folder_and_are_evaluated(tree, device, make):
    images = rt.load_image_folder(tree, size=32)
    recipe = rt.training.DIRACNETS_IMAGENET.change(epochs=1, batch=3, lr=0.01, milestones=())
    net = make(18, classes=6).float()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    run = rt.train(net, images, recipe, seed=0, device=device, progress=False)
    assert run.column("step") == [0, 2]
    moved = {name for name, p in net.named_parameters() if not torch.equal(p.cpu(), before[name])}
    assert moved == set(before)
    found = rt.evaluate(net, images)
    assert found.samples == 6 and 0 <= found.error(5) <= found.error(1) <= 1


def test_the_single_crop_is_the_middle_of_the_scaled_image(tmp_path):
    pil = pytest.importorskip("PIL.Image", reason="needs Pillow")
    (tmp_path / "a").mkdir()
    pixels = torch.zeros(64, 96, 3, dtype=torch.uint8)
    pixels[4:60, 20:76] = 200  # the middle 56 x 56
    pil.fromarray(pixels.numpy()).save(tmp_path / "a" / "x.png")
    inside = rt.load_image_folder(tmp_path, size=56, shorter=64).pixels
    assert inside.shape == (1, 3, 56, 56) and bool((inside == 200).all())
    assert not bool((rt.load_image_folder(tmp_path, size=56).pixels == 200).all())


@pytest.mark.parametrize("size", [None, 64], ids=["no size", "larger size"])
def test_a_shorter_side_below_the_crop_is_refused(tree, size):
    with pytest.raises(ValueError, match="shorter: got 60"):
        rt.load_image_folder(tree, size=size, shorter=60)


# -- verbs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets") / "net.json"
    rt.save_checkpoint(path, rt.diracnet(10))
    return path


@pytest.mark.parametrize("name", ["folded.json", "folded.pth"])
def test_fold_writes_what_evaluates_alike(capsys, tmp_path, checkpoint, name):
    out = tmp_path / name
    found = content(capsys, "fold", "--checkpoint", checkpoint, "--out", out)
    assert (found["norms"], found["parameters"]) == (7, [75_738, 75_050])
    assert len(found["converted"]) == 7 and list(found["left"]) == ["fc"]
    said = printed(capsys, "fold", "--checkpoint", checkpoint, "--out", out, "--overwrite")
    assert said.startswith(f"7 BatchNorms folded, 75,738 parameters became 75,050; {out} written.")
    options = ("--data", "digits", "--samples", "20", "--top", "1,5")
    before = content(capsys, "evaluate", "--checkpoint", checkpoint, *options)
    after = content(capsys, "evaluate", "--checkpoint", out, *options)
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
    for key in ("top_1_error", "top_5_error", "samples", "data"):
        assert after[key] == before[key]


def test_evaluate_on_a_folder(capsys, checkpoint, tree):
    words = ("evaluate", "--checkpoint", checkpoint, "--data", tree, "--size", "16")
    own, imagenet = (content(capsys, *words, "--constants", name) for name in ("own", "imagenet"))
    images = rt.load_image_folder(tree, size=16, shorter=18)
    found = rt.evaluate(rt.load_checkpoint(checkpoint), images)
    assert own["loss"] == found.loss and own["top_5_error"] == found.error(5)
    # Means and deviations of ImageNet's channels, as torchvision's documentation gives them.
    usual = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    found = rt.evaluate(rt.load_checkpoint(checkpoint), replace(images, **usual))
    assert imagenet["loss"] == found.loss


def test_evaluate_takes_the_split(capsys, checkpoint):
    words = ("evaluate", "--checkpoint", checkpoint, "--data", "digits", "--samples", "40")
    for split, more in {"test": (), "train": ("--split", "train")}.items():
        images = rt.load_images("digits", split, samples=40)
        found = rt.evaluate(rt.load_checkpoint(checkpoint), images)
        assert content(capsys, *words, *more)["loss"] == pytest.approx(found.loss, rel=1e-6)


def test_evaluate_says_it_in_a_sentence(capsys, checkpoint):
    words = ["evaluate", "--checkpoint", checkpoint, "--data", "digits", "--samples", 5]
    said = printed(capsys, *words)
    found = content(capsys, *words)
    errors = ", ".join(f"top-{k} error {100 * found[f'top_{k}_error']:.2f} %" for k in (1, 5))
    assert said == f"{errors}, loss {found['loss']:.4f} nats; 5 images, one crop each.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fold --checkpoint {net} --out a.txt", "--out: got 'a.txt'"),
        ("fold --checkpoint nothing --out a.json", "--checkpoint: no checkpoint 'nothing'"),
        ("fold --checkpoint nothing.pt7 --out a.json", "nothing.pt7: no such file"),
        ("evaluate --checkpoint {net} --data cifr10", "--data: unknown name 'cifr10'"),
        ("evaluate --checkpoint {net} --data digits --top x", "--top: got 'x'"),
        ("evaluate --checkpoint {net} --data digits --top 1,11", "--top: got 11 for 10 classes"),
        ("evaluate --checkpoint {net} --data digits --split tset", "--split: unknown name 'tset'"),
        ("evaluate --checkpoint {net} --data {tree} --shorter 9", "--shorter: got 9"),
        ("evaluate --checkpoint {net} --data {tree} --constants x", "--constants: unknown name"),
        ("evaluate --checkpoint {net}", "Missing option"),
    ],
    ids=str,
)
def test_errors_are_one_line(capsys, checkpoint, tree, words, says):
    assert says in error(capsys, *words.format(net=checkpoint, tree=tree).split())
