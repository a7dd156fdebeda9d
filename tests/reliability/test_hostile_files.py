"""Hostile files at every function that reads: code, inflated sizes, paths that lead elsewhere."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from trials import Payload, assert_refused

import resid_theory as rt
from resid_theory.data import cifar, mnist as mnist_files
from resid_theory.runtime import store
from resid_theory.sweep import setup as setups

EMPTY = b"\x02\0\0\0\0\0\0\0{}"  # a safetensors file without tensors


# Readers ------------------------------------------------------------------------------------------


def checkpoint(folder):
    return rt.load_checkpoint(folder / "net.json")


def training(folder):
    return rt.resume(folder, (torch.zeros(4, 2), torch.zeros(4).long()), progress=False)


def authors(folder):
    return rt.load_dirac_file(folder / "net.pt7")


def arrays(folder):
    return store.read_arrays(folder / "a.npz")


def own_data(folder):
    return setups.own_data(str(folder / "a.npz"), 2)


def images(folder):
    return rt.load_image_folder(folder, size=8)


def archive(folder):
    return cifar.load_cifar10(samples=10, progress=False)


def mnist(folder):
    return mnist_files.load_mnist("test", progress=False)


# Writers, given a folder and a file that must not appear ------------------------------------------


def content(name, make):
    """One file of the given bytes, which may depend on the marker."""

    def write(folder, marker):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(make(marker) if callable(make) else make)

    return write


def pickled(marker):
    return pickle.dumps(Payload(marker))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def saved_payload(marker):
    return saved(Payload(marker))


WHOLE_MODULE = saved(nn.Sequential(nn.Linear(2, 2)))


def sealed(folder, body, name="net.json"):
    """A manifest whose own sum is right: whoever forges one can compute it, too."""
    body_bytes = (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
    store.write_json(folder / name, {"manifest": body, "manifest_sha256": store.digest(body_bytes)})


def manifest(tensors=EMPTY, name="net", about=None, **changes):
    """A manifest with true sums around any tensors."""

    def write(folder, marker):
        data = tensors(marker) if callable(tensors) else tensors
        file = f"{name}.x.safetensors"
        (folder / file).write_bytes(data)
        body = {"file": file, "bytes": len(data), "sha256": store.digest(data)}
        body["about"] = about or {"kind": "net", "architecture": None, "about": {}}
        sealed(folder, {**body, **changes}, f"{name}.json")

    return write


def builder(name, **record):
    about = {"kind": "net", "architecture": {"builder": name, **record}, "about": {}}
    return manifest(about=about)


def npz(compression=zipfile.ZIP_STORED, **members):
    def write(folder, marker):
        with zipfile.ZipFile(folder / "a.npz", "w", compression) as target:
            for name, member in members.items():
                data = member(marker) if callable(member) else member
                target.writestr(name.replace("__", "../") + ".npy", data)

    return write


def npy(shape, dtype="<f8", data=b""):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def objects(marker):
    return npy((1,), "|O", pickle.dumps(np.array([Payload(marker)], dtype=object)))


def png(width, height, body=b""):
    """A PNG that claims a size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", start), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def looping_link(folder, marker):
    (folder / "a").mkdir()
    (folder / "a" / "1.png").symlink_to(folder / "a" / "1.png")


def tar(*members):
    """The CIFAR archive with members of any name, and links to any target."""

    def write(folder, marker):
        with tarfile.open(folder / cifar._ARCHIVE, "w:gz") as target:
            for name, link in members:
                info = tarfile.TarInfo(name)
                info.size = 0 if link else 1
                if link:
                    info.type, info.linkname = tarfile.SYMTYPE, link
                target.addfile(info, io.BytesIO(b"x"))

    return write


def idx(data):
    def write(folder, marker):
        for name in mnist_files._SHA256:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))

    return write


BATCH = "cifar-10-batches-bin/data_batch_1.bin"
NESTED = b"[" * 200_000 + b"]" * 200_000
HUGE = b'{"a":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,8]}}'
STRANGER = {"kind": "training", "identity": {}, "architectures": [{"builder": "os.system"}]}
OUTSIDE = {"path": "../outside.json"}
FILES = {
    "pickle for tensors": (checkpoint, manifest(pickled)),
    "torch.save for tensors": (checkpoint, manifest(saved_payload)),
    "whole module for tensors": (checkpoint, manifest(WHOLE_MODULE)),
    "pickle for a manifest": (checkpoint, content("net.json", pickled)),
    "deeply nested manifest": (checkpoint, content("net.json", NESTED)),
    "tensors at ../": (checkpoint, manifest(file="../outside.safetensors")),
    "tensors at /etc": (checkpoint, manifest(file="/etc/passwd")),
    "tensors without a name": (checkpoint, manifest(file="")),
    "tensors named by a number": (checkpoint, manifest(file=3)),
    "manifest without a sum": (checkpoint, lambda f, _: sealed(f, {"file": "a"})),
    "header of 2^60 bytes": (checkpoint, manifest(struct.pack("<Q", 1 << 60) + b"{}")),
    "tensor of 2^60 numbers": (checkpoint, manifest(struct.pack("<Q", len(HUGE)) + HUGE)),
    "builder os.system": (checkpoint, builder("os.system")),
    "builder that downloads": (checkpoint, builder("load_images", arguments={"name": "cifar10"})),
    "builder that writes": (checkpoint, builder("save_checkpoint", arguments=OUTSIDE)),
    "builder __import__": (checkpoint, builder("__import__")),
    "conversion eval": (
        checkpoint,
        builder("simplified_net", arguments={"depth": 5}, then=["eval"]),
    ),
    "pickle for a training": (training, content("checkpoint.json", pickled)),
    "training with os.system": (training, manifest(name="checkpoint", about=STRANGER)),
    "pickle for an authors' file": (authors, content("net.pt7", pickled)),
    "torch.save for an authors' file": (authors, content("net.pt7", saved_payload)),
    "whole module for an authors' file": (authors, content("net.pt7", WHOLE_MODULE)),
    "object array": (arrays, npz(x=objects, y=objects)),
    "object array as data": (own_data, npz(x=objects, y=objects)),
    "pickle for arrays": (arrays, content("a.npz", pickled)),
    "pickle as data": (own_data, content("a.npz", pickled)),
    "array of 10^15 numbers": (arrays, npz(x=npy((10**15,)))),
    "array that swells": (arrays, npz(zipfile.ZIP_DEFLATED, x=npy((10**13,)) + bytes(10**6))),
    "array at ../": (own_data, npz(____outside=b"no array")),
    "pickle for an image": (images, content("a/1.png", pickled)),
    "script for an image": (
        images,
        content("a/1.png", lambda marker: f"#!/bin/sh\ntouch {marker}".encode()),
    ),
    "image of 10^10 pixels": (images, content("a/1.png", png(100_000, 100_000))),
    "image without its pixels": (images, content("a/1.png", png(64, 64, b"\0"))),
    "image that is its own link": (images, looping_link),
    "archive with ../": (archive, tar(("../outside", ""), (BATCH, ""))),
    "archive with a link": (archive, tar((BATCH, "/etc/passwd"))),
    "archive with a device": (archive, tar((BATCH, "/dev/zero"))),
    "pickle for an archive": (archive, content(cifar._ARCHIVE, pickled)),
    "digits of 2^96 pixels": (mnist, idx(b"\0\0\x08\x03" + b"\xff" * 12)),
    "digits that swell": (mnist, idx(bytes(10**7))),
}
HOSTILE = pytest.mark.reliability(
    "hostile files: pickles, whole modules, traversal, links, huge headers, objects",
    "0 executed, 0 written elsewhere, refused in one sentence",
)


@HOSTILE
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of large images
def test_hostile_file(name, tmp_path, monkeypatch):
    read, write = FILES[name]
    folder, marker = tmp_path / "inside", tmp_path / "executed"
    folder.mkdir()
    monkeypatch.setenv("RESID_THEORY_DATA", str(folder))
    write(folder, str(marker))
    before = listing(tmp_path)
    try:
        assert_refused(lambda: read(folder), length=900)
    finally:
        assert not marker.exists(), "was executed"
        assert listing(tmp_path) == before, "wrote a file"


def listing(folder):
    """Every file below a folder with its content, links with their target."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return [(p, os.readlink(p) if p.is_symlink() else p.read_bytes()) for p in paths]


@HOSTILE
def test_a_link_is_replaced(tmp_path):
    """Writing over a link leaves alone what it points to."""
    target, link = tmp_path / "outside.json", tmp_path / "net.json"
    target.write_text("mine")
    link.symlink_to(target)
    rt.save_checkpoint(link, nn.Linear(2, 2))
    assert target.read_text() == "mine"


def test_the_payload_is_real(tmp_path):
    pickle.loads(pickled(tmp_path / "executed"))
    assert (tmp_path / "executed").exists()
