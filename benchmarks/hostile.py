"""Hostile files at every function that reads: code, inflated sizes, paths that lead elsewhere."""

import io
import json
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from benchmarks.outcome import Outcome, Trial, judged, refused
from resid_theory.data import cifar
from resid_theory.data import mnist as mnist_files
from resid_theory.runtime import store
from resid_theory.sweep import setup as setups

Make = Callable[[Path, str], None]
"""Writes hostile files into a folder; the second argument is a file that must not appear."""


class Payload:
    """Pickles as a call: whoever unpickles it runs it."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


# Doors -------------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> object:
    return rt.load_checkpoint(folder / "net.json")


def training(folder: Path) -> object:
    return rt.resume(folder, (torch.zeros(4, 2), torch.zeros(4).long()), progress=False)


def arrays(folder: Path) -> object:
    return store.read_arrays(folder / "a.npz")


def own_data(folder: Path) -> object:
    return setups.own_data(str(folder / "a.npz"), 2)


def images(folder: Path) -> object:
    return rt.load_image_folder(folder, size=8)


def archive(folder: Path) -> object:
    with mock.patch.dict(os.environ, {"RESID_THEORY_DATA": str(folder)}):
        return cifar.load_cifar10(samples=10, progress=False)


def mnist(folder: Path) -> object:
    with mock.patch.dict(os.environ, {"RESID_THEORY_DATA": str(folder)}):
        return mnist_files.load_mnist("test", progress=False)


# Makers ------------------------------------------------------------------------------------------


def sealed(folder: Path, body: object, name: str = "net.json") -> None:
    """A manifest whose own sum is right: whoever forges one can compute it, too."""
    body_bytes = (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
    store.write_json(folder / name, {"manifest": body, "manifest_sha256": store.digest(body_bytes)})


def manifest(folder: Path, content: bytes, **changes: object) -> None:
    """A manifest with true sums around any content."""
    (folder / "net.x.safetensors").write_bytes(content)
    about = {"kind": "net", "architecture": None, "about": {}}
    body = {"file": "net.x.safetensors", "bytes": len(content), "sha256": store.digest(content)}
    body |= {"about": about}
    sealed(folder, {**body, **changes})


def with_builder(record: object) -> Make:
    def make(folder: Path, _marker: str) -> None:
        about = {"kind": "net", "architecture": record, "about": {}}
        manifest(folder, b"\x02\0\0\0\0\0\0\0{}", about=about)

    return make


def header(length: int, text: bytes) -> Make:
    def make(folder: Path, _marker: str) -> None:
        manifest(folder, struct.pack("<Q", length) + text)

    return make


def tensors_as(dump: Callable[[object], bytes]) -> Make:
    def make(folder: Path, marker: str) -> None:
        manifest(folder, dump(Payload(marker)))

    return make


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def whole_module(folder: Path, _marker: str) -> None:
    manifest(folder, saved(nn.Sequential(nn.Linear(2, 2))))


def elsewhere(name: str) -> Make:
    def make(folder: Path, _marker: str) -> None:
        manifest(folder, b"\x02\0\0\0\0\0\0\0{}", file=name)

    return make


def nested_manifest(folder: Path, _marker: str) -> None:
    (folder / "net.json").write_text("[" * 200_000 + "]" * 200_000)


def pickled_manifest(folder: Path, marker: str) -> None:
    (folder / "net.json").write_bytes(pickle.dumps(Payload(marker)))


def pickled_training(folder: Path, marker: str) -> None:
    (folder / "checkpoint.json").write_bytes(pickle.dumps(Payload(marker)))


def builder_training(folder: Path, _marker: str) -> None:
    content = b"\x02\0\0\0\0\0\0\0{}"
    (folder / "checkpoint.x.safetensors").write_bytes(content)
    body = {"file": "checkpoint.x.safetensors", "bytes": 10, "sha256": store.digest(content)}
    about = {"kind": "training", "identity": {}, "architectures": [{"builder": "os.system"}]}
    sealed(folder, {**body, "about": about}, "checkpoint.json")


def npz(**members: bytes) -> Make:
    def make(folder: Path, _marker: str) -> None:
        with zipfile.ZipFile(folder / "a.npz", "w") as target:
            for name, content in members.items():
                target.writestr(name.replace("__", "/").replace("_npy", ".npy"), content)

    return make


def npy(shape: tuple[int, ...], dtype: str = "<f8", content: bytes = b"") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def object_array(folder: Path, marker: str) -> None:
    content = npy((1,), "|O", pickle.dumps(np.array([Payload(marker)], dtype=object)))
    npz(x_npy=content, y_npy=content)(folder, marker)


def pickled_array(folder: Path, marker: str) -> None:
    (folder / "a.npz").write_bytes(pickle.dumps(Payload(marker)))


def zip_bomb(folder: Path, _marker: str) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("x.npy", npy((10**13,)) + bytes(10**6))


def picture(name: str, content: Callable[[str], bytes]) -> Make:
    def make(folder: Path, marker: str) -> None:
        (folder / "a").mkdir()
        (folder / "a" / name).write_bytes(content(marker))

    return make


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", start), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def looping_link(folder: Path, _marker: str) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "1.png").symlink_to(folder / "a" / "1.png")


def tar(*members: tuple[str, bytes, str]) -> Make:
    """The CIFAR archive with members of any name, kind and target."""

    def make(folder: Path, _marker: str) -> None:
        with tarfile.open(folder / cifar._ARCHIVE, "w:gz") as target:
            for name, content, link in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if link:
                    info.type, info.linkname, info.size = tarfile.SYMTYPE, link, 0
                target.addfile(info, io.BytesIO(content))

    return make


def idx(content: bytes) -> Make:
    def make(folder: Path, _marker: str) -> None:
        import gzip

        for name in mnist_files._SHA256:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))

    return make


CIFAR = "cifar-10-batches-bin/data_batch_1.bin"
MAKERS: dict[str, tuple[Make, Callable[[Path], object]]] = {
    # a checkpoint of a net
    "pickle for tensors": (tensors_as(pickle.dumps), checkpoint),
    "torch.save for tensors": (tensors_as(saved), checkpoint),
    "whole module for tensors": (whole_module, checkpoint),
    "pickle for a manifest": (pickled_manifest, checkpoint),
    "deeply nested manifest": (nested_manifest, checkpoint),
    "tensors at ../": (elsewhere("../outside.safetensors"), checkpoint),
    "tensors at /etc": (elsewhere("/etc/passwd"), checkpoint),
    "tensors without a name": (elsewhere(""), checkpoint),
    "tensors named by a number": (lambda f, m: manifest(f, b"", file=3), checkpoint),
    "manifest without a sum": (lambda f, m: sealed(f, {"file": "a"}), checkpoint),
    "header of 2^60 bytes": (header(1 << 60, b"{}"), checkpoint),
    "tensor of 2^60 numbers": (
        header(70, b'{"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,8]}}'),
        checkpoint,
    ),
    "builder os.system": (with_builder({"builder": "os.system"}), checkpoint),
    "builder that downloads": (
        with_builder({"builder": "load_images", "arguments": {"name": "cifar10"}}),
        checkpoint,
    ),
    "builder that writes": (
        with_builder({"builder": "save_checkpoint", "arguments": {"path": "../outside.json"}}),
        checkpoint,
    ),
    "builder __import__": (with_builder({"builder": "__import__"}), checkpoint),
    "conversion eval": (
        with_builder({"builder": "simplified_net", "arguments": {"depth": 5}, "then": ["eval"]}),
        checkpoint,
    ),
    # a training
    "pickle for a training": (pickled_training, training),
    "training with os.system": (builder_training, training),
    # arrays
    "object array": (object_array, arrays),
    "object array as data": (object_array, own_data),
    "pickle for arrays": (pickled_array, arrays),
    "pickle as data": (pickled_array, own_data),
    "array of 10^15 numbers": (npz(x_npy=npy((10**15,))), arrays),
    "array that swells": (zip_bomb, arrays),
    "array at ../": (npz(**{"..__..__outside_npy": b"no array"}), own_data),
    # images
    "pickle for an image": (picture("1.png", lambda m: pickle.dumps(Payload(m))), images),
    "script for an image": (picture("1.png", lambda m: f"#!/bin/sh\ntouch {m}".encode()), images),
    "image of 10^10 pixels": (picture("1.png", lambda m: png(100_000, 100_000)), images),
    "image without its pixels": (picture("1.png", lambda m: png(64, 64, b"\0")), images),
    "image that is its own link": (looping_link, images),
    # data sets
    "archive with ../": (tar(("../outside", b"x", ""), (CIFAR, b"x", "")), archive),
    "archive with a link": (tar((CIFAR, b"", "/etc/passwd")), archive),
    "archive with a device": (tar((CIFAR, b"", "/dev/zero")), archive),
    "pickle for an archive": (
        lambda f, m: (f / cifar._ARCHIVE).write_bytes(pickle.dumps(Payload(m))) and None,
        archive,
    ),
    "digits of 2^96 pixels": (idx(b"\0\0\x08\x03" + b"\xff" * 12), mnist),
    "digits that swell": (idx(bytes(10**7)), mnist),
}


def trial(name: str) -> str | None:
    """Open one set of files; what went wrong, or None."""
    make, door = MAKERS[name]
    with tempfile.TemporaryDirectory(prefix="hostile-") as outer:
        folder, marker = Path(outer) / "inside", Path(outer) / "executed"
        folder.mkdir()
        make(folder, str(marker))
        before = listing(Path(outer))
        wrong = refused(lambda: door(folder), length=900)
        if marker.exists():
            return "was executed"
        if listing(Path(outer)) != before:
            return "wrote a file"
        return wrong


def listing(folder: Path) -> dict[str, object]:
    """Every file below a folder with its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()]
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in files
    }


def link_is_replaced() -> str | None:
    """Writing over a link leaves alone what it points to."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as outer:
        target, folder = Path(outer) / "outside.json", Path(outer) / "inside"
        folder.mkdir()
        target.write_text("mine")
        (folder / "net.json").symlink_to(target)
        rt.save_checkpoint(folder / "net.json", nn.Linear(2, 2))
        return None if target.read_text() == "mine" else "wrote through a link"


def rows(quick: bool = False) -> list[Outcome]:  # noqa: ARG001
    """The row of hostile files; tests/test_exchange.py has those of the authors' format."""
    trials: list[Trial] = [(name, lambda name=name: trial(name)) for name in MAKERS]
    trials.append(("link in place of a checkpoint", link_is_replaced))
    promise = "0 executed, 0 written elsewhere, refused in one sentence"
    fault = "hostile files: pickles, whole modules, traversal, links, huge headers, objects"
    return [judged(fault, promise, trials)]


if __name__ == "__main__":
    for row in rows():
        print(row.trials, *row.lost, sep="\n")
