"""The verb train: the papers' recipes by name, kills, and errors before any training."""

import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import time
from dataclasses import replace

import interrupted
import pytest
import torch
import typer
from verbs import content, error, printed, table

import resid_theory as rt
from resid_theory import cli, training
from resid_theory.cli import train_commands
from resid_theory.training.presets import KINDS, net_of

SMALL = "--data digits --size 8 --samples 96 --epochs 2 --batch 32 --device cpu".split()
NET = "--net simplified --depth 5 --identity residual --precision float64".split()


def test_the_verb_trains_as_the_library_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    found = content(capsys, "train", *NET, *SMALL, "--seed", 3, "--out", tmp_path)
    net = rt.simplified_net(5, identity="residual", generator=3)
    recipe = training.NOISE_STABILITY.scaled(2).change(batch=32, precision="float64")
    data = {split: rt.load_images("digits", split, size=8) for split in ("train", "test")}
    run = rt.train(
        net, data["train"].first(96), recipe, seed=3, test=data["test"], device="cpu",
        progress=False,
    )  # fmt: skip
    written = rt.load_checkpoint(found["checkpoint"])
    for one, other in zip(net.state_dict().values(), written.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert found["test_loss"] == run.metrics[-1]["test_loss"]
    assert (found["samples"], found["test_samples"], found["epoch"]) == (96, 360, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.metrics
    assert found["parameters"] == sum(p.numel() for p in net.parameters())
    assert (found["seed"], found["device"], found["data"]) == (3, "cpu", "digits")
    said = printed(capsys, "train", *NET, *SMALL, "--seed", 3, "--out", tmp_path)
    assert said.startswith(f"P = {found['parameters']:,}, 2 epochs of 96 images in ")
    rows = [["", "loss (nats)", "error (share)"]]
    for row, part in (("last epoch, as trained", ""), ("test, 360 images", "test_")):
        rows.append([row, *(f"{found[f'{part}{name}']:.4g}" for name in ("loss", "error"))])
    lines = [line.rstrip() for line in said.splitlines()]
    assert re.fullmatch(r".* in \d+\.\d s on cpu", lines[0])
    written = f"{tmp_path / 'net.json'} and {tmp_path / 'metrics.jsonl'} written."
    assert lines[1:] == [*table(rows), written]
    assert 0 < found["seconds"] < 3600


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        ("diracnet --depth 10", "DIRACNETS", {}),
        ("preresnet --depth 10 --shortcut-depth 1 --lr 0.2", "DIRACNETS", {"lr": 0.2}),
        ("full --depth 8 --no-shortcut", "NOISE_STABILITY_BN", {}),
        ("simplified --depth 5 --augmentation none", "NOISE_STABILITY", {"augmentation": "none"}),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else None,
)
def test_each_kind_has_its_papers_recipe(capsys, tmp_path, words, name, changes):
    small = "--data digits --size 8 --samples 32 --batch 32 --epochs 1 --device cpu".split()
    found = content(capsys, "train", "--net", *words.split(), *small, "--out", tmp_path)
    expected = getattr(training, name).scaled(1).change(batch=32, **changes)
    assert rt.Recipe(**found["recipe"]) == expected
    assert str(rt.load_checkpoint(tmp_path)) == str(
        rt.training.build_net(found["architecture"]).eval()
    )


def test_options_of_every_kind_are_options_of_the_verb(capsys):
    said = printed(capsys, "train", "--help")
    for option in {name for kind in KINDS.values() for name in kind.options}:
        assert f"--{option.replace('_', '-')}" in said


@pytest.mark.parametrize(
    ("kind", "depth", "narrow"),
    [("simplified", 20, {}), ("full", 20, {}), ("diracnet", 28, {"width": 1}),
     ("preresnet", 28, {"width": 1})],
)  # fmt: skip
def test_the_depth_of_a_kind_is_the_papers(kind, depth, narrow):
    expected = KINDS[kind].builder(depth, **narrow, generator=0)
    assert str(net_of(kind, **narrow)) == str(expected)
    assert all(map(torch.equal, net_of(kind, **narrow).parameters(), expected.parameters()))


def test_what_a_kind_does_not_have_is_refused():
    with pytest.raises(ValueError, match="width: got 2, which 'full' does not have"):
        net_of("full", width=2)


def left(folder):
    """Weights and log; the checkpoints' names hold the sum of what is in them."""
    net = rt.load_checkpoint(folder).state_dict()
    return {k: t.tolist() for k, t in net.items()}, (folder / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("server")
def test_a_killed_training_goes_on(capsys, tmp_path):
    if multiprocessing.get_start_method() != "fork" or not hasattr(signal, "SIGKILL"):
        pytest.skip("there is no SIGKILL here")
    words = ["train", *NET, *SMALL, "--epochs", "6", "--save-seconds", "0", "--out"]
    printed(capsys, *words, tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    process = interrupted.server().Process(target=_alone, args=([*words, str(folder)],))
    process.start()
    log = folder / "metrics.jsonl"
    started = time.monotonic()
    while not (log.exists() and log.read_bytes().count(b"\n") > 1):
        assert time.monotonic() - started < 60 and process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    step = training.checkpoint.Folder(folder).load()[1]["step"]
    assert 0 < step < 18 and not (folder / "net.json").exists()
    printed(capsys, *words, folder)
    assert left(folder) == left(tmp_path / "undisturbed")


def _alone(words):
    torch.set_default_dtype(torch.float64)
    cli.main(words)


def _rank(rank, words, folder, port):
    """What torchrun has one of its two processes do; the program reads its place when imported."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), stream)
    for name in [name for name in sys.modules if name.startswith("resid_theory.cli")]:
        del sys.modules[name]
    sys.argv = ["resid-theory", "train", *map(str, words)]
    runpy.run_module("resid_theory.cli", run_name="__main__")


def started(folder, *words):
    """Exit codes, output and errors of the verb in two processes, as torchrun starts them."""
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = interrupted.server().Process
    both = [process(target=_rank, args=(r, words, folder, meeting.port)) for r in (0, 1)]
    for each in both:
        each.start()
    for each in both:
        each.join(300)
        each.kill()
        each.join()
    said = [
        "".join((folder / f"{r}.{name}").read_text() for r in (0, 1)) for name in ("out", "err")
    ]
    return [each.exitcode for each in both], *said


@pytest.mark.usefixtures("server")
def test_two_processes_train_as_one(capsys, tmp_path):
    codes, out, err = started(tmp_path, *NET, *SMALL, "--json", "--out", tmp_path / "two")
    assert codes == [0, 0], err
    found = json.loads(out)  # of one process only
    torch.set_default_dtype(torch.float32)  # in which a program draws its first weights
    one = content(capsys, "train", *NET, *SMALL, "--out", tmp_path / "one")
    for key in ("loss", "error", "test_loss", "test_error"):
        assert found[key] == pytest.approx(one[key], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("auto", 1, "auto"), ("cpu", 1, "cpu"), ("auto", 2, "cpu"), ("cpu", 2, "cpu")],
)
def test_each_process_has_a_device(monkeypatch, name, count, expected):
    monkeypatch.setattr(train_commands, "_COUNT", count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_commands._device(name) == expected


def test_each_of_several_processes_has_its_own_gpu(monkeypatch, cuda):
    monkeypatch.setattr(train_commands, "_COUNT", 2)
    assert [train_commands._device(name) for name in ("auto", "cuda", "cpu")] == [
        "cuda:0", "cuda:0", "cpu",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--device: got 'cuda:0' for 2 processes, needs auto"):
        train_commands._device("cuda:0")


@pytest.fixture
def calls(monkeypatch):
    """What is asked of torch.distributed, which stays unasked."""
    made = []
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(
            torch.distributed, name, lambda *given, name=name: made.append((name, *given))
        )
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.append(device))
    return made


@pytest.mark.parametrize(
    ("count", "device", "before"),
    [(1, "cpu", None), (2, "cpu", [("init_process_group", "gloo")]),
     (2, "cuda:1", ["cuda:1", ("init_process_group", "nccl")])],
    ids=["one", "cpu", "gpu"],
)  # fmt: skip
def test_processes_meet_and_leave_together(monkeypatch, calls, count, device, before):
    monkeypatch.setattr(train_commands, "_COUNT", count)
    with train_commands._world(device) as group:
        calls.append(group)
    after = ["world", ("barrier",), ("destroy_process_group",)]
    assert calls == ([None] if before is None else [*before, *after])


@pytest.mark.parametrize("local", [0, 1])
@pytest.mark.parametrize("group", [None, "world"])
def test_one_process_of_a_machine_downloads_before_the_others(monkeypatch, calls, local, group):
    monkeypatch.setattr(train_commands, "_LOCAL", local)
    with train_commands._in_turn(group):
        calls.append("work")
    wait = [("barrier",)] if group else []
    assert calls == (["work", *wait] if local == 0 else [*wait, "work"])


@pytest.mark.parametrize(
    ("rank", "error", "raised"),
    [
        (0, ValueError("lr: no"), ValueError),
        (1, ValueError("lr: no"), typer.Exit),
        (1, ValueError("process_group: no"), ValueError),
        (0, RuntimeError("process_group: rank 0 failed"), typer.Exit),
        (1, RuntimeError("process_group: rank 1 is lost"), ValueError),
        (0, RuntimeError("another"), RuntimeError),
    ],
    ids=str,
)
def test_an_error_is_reported_by_whom_it_concerns(monkeypatch, rank, error, raised):
    monkeypatch.setattr(train_commands, "_RANK", rank)
    with pytest.raises(raised) as caught, train_commands._reported_once():
        raise error
    assert type(caught.value) is raised


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_says_what_is_wrong_everywhere(capsys, monkeypatch, rank):
    monkeypatch.setattr(train_commands, "_RANK", rank)
    assert cli.main(["train", *NET, *SMALL, "--lr", "0"]) == 2
    assert capsys.readouterr().err.count("--lr: got 0.0") == 1 - rank


def test_other_ranks_say_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(train_commands, "_RANK", 1)
    monkeypatch.setattr(rt, "train", lambda *_, **__: None)
    assert printed(capsys, "train", *NET, *SMALL, "--out", tmp_path) == ""


def test_a_training_that_diverges_says_so(capsys, tmp_path):
    words = ["train", *NET, *SMALL, "--lr", "1e200", "--out", tmp_path]
    assert error(capsys, *words).startswith("resid-theory: step ")


def test_the_folder_is_named_after_the_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = printed(capsys, "train", *NET, *SMALL)
    name = "simplified.depth-5.identity-residual.digits-96.seed-0"
    assert (tmp_path / "resid_theory_runs" / name / "net.json").exists()
    assert "test, 360 images" in said and name in said


def test_a_folder_of_images_is_tested_on_another(capsys, tmp_path):
    pil = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for split, labels in {"train": "ab", "test": "ab", "other": "ac"}.items():
        for shade, label in enumerate(labels):
            place = tmp_path / split / label
            place.mkdir(parents=True)
            color = (90 * shade, 40, 200) if split != "test" else (120 * shade, 140, 200)
            pil.new("RGB", (8, 8), color).save(place / "0.png")
    words = ["train", "--data", tmp_path / "train", *NET, "--size", 8, "--batch", 2, "--epochs", 1]
    words += ["--device", "cpu", "--out", tmp_path / "out"]
    found = content(capsys, *words, "--test", tmp_path / "test")
    assert (found["test_samples"], found["architecture"]["arguments"]["classes"]) == (2, 2)
    trained, tests = (rt.load_image_folder(tmp_path / split, size=8, shorter=9)
                      for split in ("train", "test"))  # fmt: skip
    assert trained.mean != tests.mean and trained.std != tests.std
    tests = replace(tests, mean=trained.mean, std=trained.std)
    measured = rt.evaluate(rt.load_checkpoint(tmp_path / "out"), tests)
    assert found["test_loss"] == pytest.approx(measured.loss, rel=1e-12)
    said = printed(capsys, "evaluate", "--checkpoint", found["checkpoint"], "--size", 8,
                   "--data", tmp_path / "test")  # fmt: skip
    assert f"was trained on {tmp_path / 'train'}, not on {tmp_path / 'test'}" in said
    said = printed(capsys, *words[:-1], tmp_path / "untested")
    assert "last epoch, as trained" in said and "test," not in said
    empty = error(capsys, *words, "--test", tmp_path / "other" / "a")
    assert empty.startswith(f"resid-theory: --test: {tmp_path / 'other' / 'a'} has no images")
    said = error(capsys, *words, "--test", tmp_path / "other")
    assert "--test: has the classes a, c, needs those of --data: a, b" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--net diracne", "--net: unknown name 'diracne'; did you mean 'diracnet'?"),
        ("--net full --depth 9", "--depth: got 9, needs 6n + 2"),
        ("--net full --width 2", "--width: got 2, which 'full' does not have; needs one of depth"),
        ("--net simplified --no-shortcut", "--shortcut: got False, which 'simplified' does not"),
        ("--net simplified --identity dirac", "--identity: unknown name 'dirac'"),
        ("--net preresnet --shortcut-depth 3", "--shortcut-depth: got 3"),
        ("--net full --lr 0", "--lr: got 0.0, needs a finite number above 0"),
        ("--net full --epochs 0", "--epochs: got 0, needs at least 1"),
        ("--net full --weight-decay -1", "--weight-decay: got -1.0"),
        ("--net full --precision half", "--precision: unknown name 'half'"),
        ("--net full --batch 5000", "--batch: got 5000 for 1437 samples"),
        ("--net full --data cifr", "--data: unknown name 'cifr'"),
        ("--net full --samples 9999", "--samples: got 9999"),
        ("--net full --test nowhere", "--test: got 'nowhere' with --data 'digits', needs two"),
        ("--net full --device cud", "--device: got 'cud'"),
        ("--net full --save-seconds -1", "--save-seconds: got -1.0"),
        ("", "Missing option '--net'"),
    ],
)
def test_errors_are_one_line_before_training(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.optim.SGD, "step", None)
    given = ["train", *words.split(), *([] if "--data" in words else ["--data", "digits"])]
    assert says in error(capsys, *given)
