"""Files are whole or absent, and a flipped bit is noticed."""

import errno
import io
import math
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from resid_theory.runtime import store

ARRAYS = {
    "numbers": np.linspace(0.0, 1.0, 7).reshape(7, 1),
    "counts": np.arange(3),
    "scalar": np.float64(2.5),
    "flags": np.array([True, False]),
    "names": np.array(["xavier", "orthogonal"]),
}


def test_bytes_come_back_and_the_digest_is_the_known_one(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    # The sha256 of "abc" is the first test vector of FIPS 180-2.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert store.write_bytes(path, b"abc") == known
    assert store.digest(path) == store.digest(b"abc") == known
    assert store.read_bytes(path, sha256=known.upper()) == b"abc"


def test_a_write_leaves_one_file_with_the_usual_permissions(tmp_path):
    for content in (b"one", b"two"):
        store.write_bytes(tmp_path / "a.bin", content)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "a.bin"
    store.write_bytes(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        store.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_content_reaches_the_disk_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(store.os, "fsync", lambda f: calls.append("fsync") or fsync(f))
    monkeypatch.setattr(store.os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    store.write_bytes(tmp_path / "a.bin", b"x")
    assert calls == (["fsync", "replace", "fsync"] if os.name == "posix" else ["fsync", "replace"])


def test_damage_names_file_expected_found_and_remedy(tmp_path):
    path = tmp_path / "a.bin"
    good = store.write_bytes(path, b"good")
    path.write_bytes(b"goot")
    with pytest.raises(ValueError, match="a.bin") as caught:
        store.read_bytes(path, sha256=good, remedy="delete it")
    for part in (good, store.digest(b"goot"), "delete it"):
        assert part in str(caught.value)


def test_paths_are_strings_or_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert store.path_of("~/a", "out") == store.path_of(Path("/home/of/mine/a"), "out")
    with pytest.raises(ValueError, match="^out: got 3, needs a path, a string or a pathlib.Path$"):
        store.path_of(3, "out")


def test_a_lock_is_held_until_its_end(tmp_path):
    pytest.importorskip("fcntl", reason="there are no locks here")
    with store.locked(tmp_path / "lock"):
        with pytest.raises(ValueError, match="^held$"), store.locked(tmp_path / "lock", "held"):
            pass
    with store.locked(tmp_path / "lock", "held"):
        pass


def test_a_folder_that_is_read_only_is_locked_by_the_file_that_is_there(tmp_path, monkeypatch):
    with store.locked(tmp_path / "lock"):
        pass

    def only_reads(path, mode="r"):
        if mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(store, "open", only_reads, raising=False)
    with store.locked(tmp_path / "lock", "held"):
        with pytest.raises(ValueError, match="^held$"), store.locked(tmp_path / "lock", "held"):
            pass
    with pytest.raises(PermissionError), store.locked(tmp_path / "none", "held"):
        pass


def test_without_locks_of_the_system_nothing_is_locked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with store.locked(tmp_path / "new" / "lock", "held"), store.locked(tmp_path / "new" / "lock"):
        assert (tmp_path / "new" / "lock").is_file()


def test_json_round_trip_and_invalid_json(tmp_path):
    content = {"b": [1, 2.5, None, True], "a": "λ ± σ"}
    store.write_json(tmp_path / "a.json", content)
    assert store.read_json(tmp_path / "a.json") == content
    assert list(store.read_json(tmp_path / "a.json")) == ["b", "a"]
    text = (tmp_path / "a.json").read_text(encoding="utf-8")  # for readers
    assert text.startswith('{\n  "b": [\n    1,') and text.endswith('"a": "λ ± σ"\n}\n')
    (tmp_path / "a.json").write_text('{"half":')
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        store.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", [[math.inf], [math.nan], {"a": np.zeros(2)}], ids=str)
def test_json_refuses_what_it_cannot_hold(tmp_path, content):
    with pytest.raises(ValueError, match="a.json as JSON"):
        store.write_json(tmp_path / "a.json", content)
    assert not (tmp_path / "a.json").exists()


def test_arrays_come_back_bit_for_bit_and_numpy_reads_them(tmp_path):
    sha256 = store.write_arrays(tmp_path / "a.npz", ARRAYS)
    back = store.read_arrays(tmp_path / "a.npz", sha256=sha256)
    assert list(back) == sorted(ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        for name, array in ARRAYS.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array, strict=False)
            np.testing.assert_array_equal(archive[name], array, strict=False)


def test_equal_arrays_give_equal_bytes_at_any_time(tmp_path):
    first = store.write_arrays(tmp_path / "a.npz", ARRAYS)
    turned = dict(reversed(ARRAYS.items()))
    assert store.write_arrays(tmp_path / "b.npz", turned) == first
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        stamps = {(member.date_time, member.create_system) for member in archive.infolist()}
    assert stamps == {((1980, 1, 1, 0, 0, 0), 3)}  # also on Windows


def test_objects_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"arrays\['bad'\].*object"):
        store.write_arrays(tmp_path / "a.npz", {"bad": np.array([{}])})


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"PK\x03\x04 cut", store._npy("one", np.zeros(2))],
    ids=["empty", "text", "cut", "single_array"],
)
def test_what_is_no_archive_is_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: not an archive"):
        store.read_arrays(tmp_path / "a.npz")


def with_member(path, *members):
    """An archive of an array in another version of the format, or one whose header lies."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (version, shape) in enumerate(members):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.arange(3.0), version=version)
            content = buffer.getvalue().replace(b"(3,), ", shape)
            archive.writestr(f"{number}.npy", content)


def test_headers_of_every_version_are_read_and_their_claims_are_compared(tmp_path):
    with_member(tmp_path / "a.npz", ((1, 0), b"(3,), "), ((2, 0), b"(3,), "))
    found = store.read_arrays(tmp_path / "a.npz")
    assert [array.tolist() for array in found.values()] == [[0.0, 1.0, 2.0]] * 2
    for version in (1, 0), (2, 0):
        with_member(tmp_path / "b.npz", (version, b"(99,),"))
        with pytest.raises(ValueError, match=r"b\.npz: .*0\.npy claims 792 bytes, has 152"):
            store.read_arrays(tmp_path / "b.npz")


def tensors():
    half = torch.arange(6.0).view(2, 3)
    return {
        "transposed": half.T,
        "shared": half,
        "twin": half,
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(2),
        "empty": torch.zeros(0, 2),
    }


ABOUT = {"step": 3, "rate": 0.1, "name": "λ", "none": None, "list": [1, [2.5, True]]}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    file = store.write_checkpoint(tmp_path / "new" / "a.json", tensors(), ABOUT)
    found, about = store.read_checkpoint(tmp_path / "new" / "a.json")
    same(found, tensors())
    assert about == ABOUT
    assert sorted(p.name for p in file.parent.iterdir()) == sorted(["a.json", file.name])
    again = store.write_checkpoint(tmp_path / "b.json", dict(reversed(tensors().items())), ABOUT)
    assert file.read_bytes() == again.read_bytes()


def test_a_new_checkpoint_leaves_nothing_of_the_old_one(tmp_path):
    neighbour = store.write_checkpoint(tmp_path / "ab.json", tensors(), ABOUT)
    old = store.write_checkpoint(tmp_path / "a.json", tensors(), ABOUT)
    for stale in (old.name, "a.json"):
        (tmp_path / f".{stale}.0123.partial").write_bytes(b"half")
    new = store.write_checkpoint(tmp_path / "a.json", {"x": torch.zeros(2)}, ABOUT)
    files = {p.name for p in tmp_path.iterdir()}
    assert files == {"a.json", new.name, "ab.json", neighbour.name}
    store.write_checkpoint(tmp_path / "[ab].json", tensors(), ABOUT)
    store.write_checkpoint(tmp_path / "[ab].json", {}, ABOUT)
    assert len(list(tmp_path.iterdir())) == 6 and files <= {p.name for p in tmp_path.iterdir()}


def test_what_another_writer_has_removed_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "removed"])
    store.write_checkpoint(tmp_path / "a.json", tensors(), ABOUT)


@pytest.mark.parametrize(("flush", "count"), [(True, 4), (False, 0)])
def test_a_checkpoint_waits_for_the_disk_where_it_should(tmp_path, monkeypatch, flush, count):
    calls = []
    monkeypatch.setattr(store.os, "fsync", calls.append)
    store.write_checkpoint(tmp_path / "a.json", tensors(), ABOUT, flush=flush)
    assert len(calls) == count * (1 if os.name == "posix" else 0.5)


@pytest.mark.parametrize(
    ("value", "message"),
    [(3, "^tensors: 'x' is int, needs a tensor$"),
     (torch.ones(1, dtype=torch.complex128), "^tensors: .* has no place in the safetensors")],
)  # fmt: skip
def test_what_is_no_tensor_of_the_format_is_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        store.write_checkpoint(tmp_path / "a.json", {"x": value}, ABOUT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_fails_anywhere_leaves_the_old_checkpoint(tmp_path, monkeypatch, call, step):
    path = tmp_path / "a.json"
    store.write_checkpoint(path, tensors(), ABOUT)
    calls, original = [], getattr(os, call)

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == step + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    monkeypatch.setattr(store.os, call, failing)
    new = {"x": torch.ones(3)}
    try:
        store.write_checkpoint(path, new, {"step": 4})
    except OSError as error:
        assert (error.errno, error.strerror) == (
            errno.ENOSPC,
            f"{path}: the checkpoint was not written (No space left on device); the previous "
            "checkpoint is intact; make room or choose another folder, then run again to continue",
        )
    monkeypatch.undo()
    found, about = store.read_checkpoint(path)
    # Old or new, whole; the rename of the manifest decides.
    same(found, new if about == {"step": 4} else tensors())
    if len(calls) <= step:
        assert about == {"step": 4}
    store.tidy_checkpoint(path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_first_checkpoint_that_fails_says_that_there_was_none(tmp_path, monkeypatch):
    monkeypatch.setattr(store.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="there was none before"):
        store.write_checkpoint(tmp_path / "a.json", tensors(), ABOUT)


def test_every_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    path = tmp_path / "a.json"
    store.write_checkpoint(path, {}, {"a": 1})
    content = path.read_bytes()
    unnoticed = []
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            store.read_checkpoint(path)
            unnoticed.append(bit)
        except ValueError as error:
            assert "a.json: the manifest is damaged" in str(error)
    assert not unnoticed


@pytest.mark.parametrize("place", [0, 10, -1])
def test_damaged_or_absent_tensors_are_named(tmp_path, place):
    file = store.write_checkpoint(tmp_path / "a.json", tensors(), ABOUT)
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name}: .*sha256"):
        store.read_checkpoint(tmp_path / "a.json")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name}: is not there"):
        store.read_checkpoint(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "about", "message"),
    [("a.pt", {}, "ends in .json"), ("a.json", {"x": float("nan")}, "as JSON")],
    ids=["name", "nan"],
)
def test_a_checkpoint_that_cannot_be_is_refused_before_it_is_written(
    tmp_path, name, about, message
):
    with pytest.raises(ValueError, match=message):
        store.write_checkpoint(tmp_path / name, tensors(), about)
    assert not list(tmp_path.iterdir())


def test_a_manifest_is_whole_to_the_byte(tmp_path):
    path = tmp_path / "a.json"
    store.write_checkpoint(path, {}, ABOUT)
    content = path.read_bytes()
    for changed in (content[:-1], content.replace(b"\n", b"\r\n")):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"a\.json: the manifest is damaged"):
            store.read_checkpoint(path)
