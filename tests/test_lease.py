"""A rented machine, rehearsed: digits, a pretended GPU, seconds for minutes."""

import json
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import interrupted
import numpy as np
import pytest
from fake_cuda import pretended

import resid_theory as rt
from experiments.lease import fast_paths, on_machine, time_table
from experiments.lease.carried import sealed, steps_done
from experiments.lease.collect import collect, told
from experiments.lease.on_machine import Lease
from experiments.lease.packed_images import pack_images, unpack_images
from experiments.lease.part_processes import Machine, PartQueue
from experiments.lease.prepare import CALL, described_request, description, distributed
from experiments.lease.volumes import Limits, read_volumes, write_volumes
from experiments.parts import Execution, Request, StoppedError, Store
from experiments.trainings import Training

RECIPE = rt.Recipe(epochs=2, batch=16, lr=0.05, milestones=(1,), augmentation="none")


@dataclass(frozen=True, kw_only=True)
class Crashing(Training):
    """A training that takes its process along."""

    def compute(self, execution, folder=None):
        os._exit(134)


def request(seed=0, kind=Training, epochs=2, samples=48):
    part = kind(
        architecture={"builder": "simplified_net", "arguments": {"depth": 5, "generator": seed}},
        recipe=RECIPE.change(epochs=epochs),
        seed=seed,
        data="digits",
        samples=samples,
        tests=50,
        size=8,
    )
    return Request(part=part, claim="paper/claim", scale="single", weights=True)


def lease(folder, requests, seconds, folders=0, **changes):
    folder = Path(folder)
    machine = Machine(parts=folder / "home" / "parts", rehearsal=True, inside=pretended)
    given = dict(
        home=folder / "home",
        out=folder / "out",
        until=time.time() + seconds,
        requests=requests,
        folders=folders,
        limits=Limits(),
        machine=machine,
    )
    return Lease(**{**given, **changes})


def test_a_control_in_float32_is_not_computed_in_what_its_kind_of_net_takes(tmp_path):
    how = {"precision": "tf32", "channels_last": True, "compile": "graph"}
    coarse, fine = request(), request(seed=1)
    coarse = replace(
        coarse, part=replace(coarse.part, recipe=coarse.part.recipe.change(precision="tf32"))
    )
    queue = lease(tmp_path, [coarse, fine], 60)
    queue.choices = {"simplified_net": fast_paths.Choice(how=how, milliseconds=1.0, words=())}
    assert [time_table.label(each.part) for each in (coarse, fine)] == [
        "simplified_net 5 seed 0 digits", "simplified_net 5 float32 seed 1 digits",
    ]  # fmt: skip
    assert queue._how(coarse) == how
    assert queue._how(fine) == {"precision": "float32", "channels_last": False, "compile": "graph"}
    assert fine.part.means(Execution(device="cuda", **queue._how(fine))) == queue._how(fine)


# Files -------------------------------------------------------------------------------------------


def test_images_are_packed_without_loss():
    source = np.random.default_rng(0)
    smooth = np.cumsum(source.integers(-3, 4, (20, 1, 32, 32)), -1) + np.zeros((3, 1, 1), int)
    batch = (
        np.concatenate([source.integers(10, size=(20, 1)), smooth.reshape(20, -1)], 1)
        .astype(np.uint8)
        .tobytes()
    )  # uint8: modulo 256, as the differences
    packed = pack_images(batch)
    assert unpack_images(packed) == batch
    assert len(packed) < 0.7 * len(batch)
    with pytest.raises(ValueError, match="not a packed batch"):
        unpack_images(packed[:-9])


def test_volumes_hold_what_fits_and_replace_one_another_as_a_whole(tmp_path):
    limits = Limits(files=6, file_bytes=14_000, total_bytes=84_000)
    groups = {name: {f"{name}/x": os.urandom(size), f"{name}/y": b"y"}
              for name, size in (("a", 12_000), ("b", 20_000), ("c", 9_000))}  # fmt: skip
    assert write_volumes(groups, tmp_path, limits) == ["b"]
    [members] = read_volumes(tmp_path)
    assert members == {**groups["a"], **groups["c"]}
    assert len(list(tmp_path.iterdir())) <= limits.files // 2
    assert not write_volumes({"c": groups["c"]}, tmp_path, limits)
    assert read_volumes(tmp_path) == [dict(groups["c"])]
    damaged = next(tmp_path.glob("volume-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="1 sets of volumes, none of them whole"):
        read_volumes(tmp_path)


# The rehearsal -----------------------------------------------------------------------------------


def rehearse(folder):
    """Two calls; the first is ended by time, the second by a signal."""
    os.setsid()
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    multiprocessing.util.spawnv_passfds = interrupted.forked
    # Nothing is cut off where the machine is slow.
    on_machine.SAVE = on_machine.CHECK = on_machine.GAIN = 1000
    endless, crashing, short = request(2, epochs=4000), request(1, Crashing), request()
    lease(folder / "1", [endless], on_machine.PACK + 2).run()
    shutil.move(folder / "1" / "home", folder / "home")
    lease(folder, [crashing, short, endless], 10_000).run()


@pytest.mark.usefixtures("server")
def test_a_rehearsal(tmp_path):
    endless, crashing, short = request(2, epochs=4000), request(1, Crashing), request()
    call = interrupted.server().Process(target=rehearse, args=(tmp_path,))
    call.start()
    cells = tmp_path / "home" / "parts" / "cells"
    metrics = cells / endless.part.key / "training" / "metrics.jsonl"

    def trains():
        if not (tmp_path / "log").exists():
            return False
        words = (tmp_path / "log").read_text()
        begun = "finished" in words and words.count("seed 2 digits, ") == 2
        return begun and metrics.is_file() and metrics.read_bytes().count(b"\n") > 2

    latest = time.time() + 150
    while call.is_alive() and not trains() and time.time() < latest:
        time.sleep(0.02)
    os.killpg(call.pid, signal.SIGTERM)  # as `timeout` does: to all processes of the call
    call.join(100)
    if call.is_alive():
        os.killpg(call.pid, signal.SIGKILL)
        call.join()
    log = (tmp_path / "log").read_text()
    assert call.exitcode == 0, log
    tried = [word in log for word in ("channels_last:", "graph:")]
    assert all(tried) and "NOT USED" not in log and "simplified_net: chosen" in log, log
    assert log.count("side by side do the work of unknown") == 1, log  # in the first, short call
    found = collect(tmp_path, tmp_path / "parts")
    assert (found.finished, found.unfinished) == ([short.part.key], [endless.part.key])
    table = told(found.calls)
    assert table.count("finished") == 1 and "side by side" in table
    by_time, by_signal = ({attempt["key"]: attempt for attempt in call["attempts"]}
                          for call in found.calls)  # fmt: skip
    assert (
        by_time[endless.part.key]["outcome"] == by_signal[endless.part.key]["outcome"] == "stopped"
    )
    assert by_time[endless.part.key]["ended"] == by_signal[endless.part.key]["begun"]
    assert by_signal[crashing.part.key]["outcome"] == "failed"  # and touches no other part
    how = by_signal[short.part.key]["how"]
    done = Store(tmp_path / "parts").find(short.part, weights=True)
    with pretended():
        exact = short.part.compute(Execution(device="cuda", **how))
    assert done.arrays.keys() == exact.keys()
    for name in exact:
        np.testing.assert_array_equal(done.arrays[name], exact[name], strict=True, err_msg=name)


def failing():
    raise RuntimeError("no device")


@pytest.mark.usefixtures("server")
def test_trainings_that_fail_side_by_side_are_not_waited_for(tmp_path):
    interrupted.server()
    pair = [(request(seed).part, fast_paths.PLAIN, 1.0) for seed in range(2)]
    machine = Machine(parts=tmp_path, rehearsal=True, inside=failing)
    assert fast_paths.gain_together(pair, machine, time.time() + 1000) is None


def test_an_unfinished_part_goes_on_elsewhere_as_it_was_begun(tmp_path):
    wanted = request()
    place, other = (tmp_path / home / "parts" / "cells" / wanted.part.key for home in "ab")
    begun = Execution(channels_last=True, stop=lambda step: step == 3)
    with pytest.raises(StoppedError):
        wanted.part.compute(begun, place)
    # As prepare packs it, to a bare machine.
    write_volumes({"part": sealed(place, "training/checkpoint")}, tmp_path / "b" / "1", Limits())
    there = lease(tmp_path, [wanted], 100, home=tmp_path / "b", folders=1)
    replace(there, machine=Machine(parts=tmp_path / "b" / "parts")).unpack()
    assert steps_done(other) == 3
    assert wanted.part.means(Execution(channels_last=False), other)["channels_last"] is True
    found = wanted.part.compute(Execution(), other)
    exact = wanted.part.compute(Execution(channels_last=True))
    np.testing.assert_array_equal(found["log.loss"], exact["log.loss"], strict=True)


def test_a_later_call_ends_at_once_on_a_bare_machine(tmp_path):
    script = tmp_path / "call.sh"
    script.write_text(CALL.format(number=3, count=3, commit="0", earlier="1 2"))
    ended = subprocess.run(
        ["bash", str(script), "100"],
        env={**os.environ, "LEASE": str(tmp_path / "bare")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 9 and "begin with call 1" in ended.stdout
    assert not (tmp_path / "bare").exists()


# Choices -----------------------------------------------------------------------------------------


def test_a_fast_path_that_computes_something_else_is_not_used():
    plain = fast_paths.Trial(kind="full_net", path="plain", how=fast_paths.PLAIN,
                             losses=[2.3, 2.2, 2.1], milliseconds=13.0, start=1.0)  # fmt: skip
    coarse = replace(plain, path="bf16", how={**fast_paths.PLAIN, "precision": "bf16"},
                     losses=[2.301, 2.202, 2.1], milliseconds=9.0)  # fmt: skip
    wrong = replace(coarse, path="channels_last", losses=[2.3, 2.0, 2.1], milliseconds=5.0)
    failed = replace(coarse, path="graph", losses=[], error="RuntimeError: x", milliseconds=1.0)
    slow = replace(coarse, path="graph", milliseconds=8.9, start=100.0)
    chosen = fast_paths.choose([plain, coarse, wrong, failed, slow], {"full_net": 10_000})
    assert chosen["full_net"].how == coarse.how
    words = "\n".join(chosen["full_net"].words)
    assert words.count("NOT USED") == 2 and "gap 9.1e-02 of the first losses" in words
    only = fast_paths.choose([replace(plain, error="OutOfMemoryError"), coarse], {"full_net": 9})
    assert only["full_net"].how == fast_paths.PLAIN


def test_the_next_part_is_the_first_that_can_end_in_time():
    queue = PartQueue(
        requests=[],
        machine=Machine(parts=Path()),
        until=time.time() + 100,
        slots=2,
        seconds=lambda seconds: seconds,
        how=lambda _: {},
        plain={},
    )
    assert queue._next([300, 90, 10]) == 1
    assert queue._next([300, 200]) == 0


def paper(builder, depth, seed=0, **arguments):
    given = {"depth": depth, "generator": seed, **arguments}
    recipe = rt.Recipe(precision="bf16")
    return Training(architecture={"builder": builder, "arguments": given}, recipe=recipe, seed=seed)


def test_the_time_table_begins_with_what_a_minute_tells_most():
    nets = [
        paper("diracnet", 28, width=5), paper("full_net", 20), paper("diracnet", 100),
        paper("diracnet", 28, identity="plain"), paper("diracnet", 28),
        paper("simplified_net", 20, 1), paper("simplified_net", 20),
    ]  # fmt: skip
    # The same net by another recipe, for fewer claims.
    nets.append(replace(nets[4], recipe=rt.Recipe(precision="bf16", decay="multi_axis")))
    asked = {
        net.key: [
            Request(part=net, claim=f"a/{i}", scale="paper" if net.seed else "single", weights=True)
            for i in range(1 + (net is nets[4]))
        ]
        for net in nets
    }
    order = time_table.in_order(asked, ["single", "paper"])
    assert [nets.index(net) for net in order] == [6, 1, 4, 3, 0, 7, 2, 5]
    rows = time_table.time_table(order)
    # 78,200 steps of 6.6 ms, and a share of evaluation.
    assert rows[0].seconds == pytest.approx(10 + 1.08 * 78.2 * 6.6)
    assert rows[1].ends == pytest.approx((rows[0].seconds + rows[1].seconds) / 1.2)
    # Ten times faster launches are no faster products: 28 x 25 x 1.5 GFLOP at 150 TFLOP/s.
    assert time_table.milliseconds(nets[4], 0.1) == pytest.approx(1.8)
    assert time_table.milliseconds(nets[0], 0.1) == pytest.approx(7)
    assert "1 of 8 end within 540 s" in time_table.printed(rows, 540)


def test_a_request_travels_as_a_file():
    wanted = Request(part=paper("simplified_net", 20, 1), claim="c", scale="paper", weights=True)
    there = described_request(json.loads(json.dumps(description(wanted))))
    assert there.part.key == wanted.part.key
    assert (there.claim, there.scale, there.weights) == ("c", "paper", True)


def test_files_are_distributed_so_that_each_call_can_carry_its_own():
    files = {name: bytes(40) for name in "abcde"}
    assert distributed(files, 100) == [["a", "b"], ["c", "d"], ["e"]]
    with pytest.raises(ValueError, match="a has 40 bytes, more than the 30 of a call"):
        distributed(files, 30)
