"""Files are whole or absent, and a flipped bit is noticed."""

import errno
import os
import zipfile

import numpy as np
import pytest

from resid_theory import store

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


def test_a_write_leaves_no_other_file(tmp_path):
    for content in (b"one", b"two"):
        store.write_bytes(tmp_path / "a.bin", content)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"two"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    store.write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


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


def test_json_round_trip(tmp_path):
    content = {"b": [1, 2.5, None, True], "a": "λ ± σ"}
    store.write_json(tmp_path / "a.json", content)
    assert store.read_json(tmp_path / "a.json") == content
    assert list(store.read_json(tmp_path / "a.json")) == ["b", "a"]


@pytest.mark.parametrize(
    "content",
    [{"a": float("inf")}, [float("nan")], {"a": np.zeros(2)}],
    ids=["inf", "nan", "array"],
)
def test_json_refuses_what_it_cannot_hold(tmp_path, content):
    with pytest.raises(ValueError, match="a.json as JSON"):
        store.write_json(tmp_path / "a.json", content)
    assert not (tmp_path / "a.json").exists()


def test_invalid_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"half":')
    with pytest.raises(ValueError, match=r"a\.json: not valid JSON"):
        store.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_bit_for_bit(tmp_path, name):
    sha256 = store.write_arrays(tmp_path / "a.npz", ARRAYS)
    back = store.read_arrays(tmp_path / "a.npz", sha256=sha256)
    assert list(back) == sorted(ARRAYS)
    assert back[name].dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(back[name], ARRAYS[name], strict=False)


def test_numpy_reads_what_we_write(tmp_path):
    store.write_arrays(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["numbers"], ARRAYS["numbers"])


def test_equal_arrays_give_equal_bytes_at_any_time(tmp_path):
    first = store.write_arrays(tmp_path / "a.npz", ARRAYS)
    turned = dict(reversed(ARRAYS.items()))
    assert store.write_arrays(tmp_path / "b.npz", turned) == first
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("position", [0, 100, -30])
def test_one_flipped_bit_is_noticed(tmp_path, position):
    path = tmp_path / "a.npz"
    sha256 = store.write_arrays(path, ARRAYS)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz.*sha256"):
        store.read_arrays(path, sha256=sha256)


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
