"""What kills and flipped bits do to a training: python benchmarks/crash.py [--kills N --flips N].

Every trial kills a training with SIGKILL at a random moment, continues it, kills it again, up to
four times, and compares all that is left in its folder with an undisturbed training, bit by bit.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from resid_theory.runtime import store
from resid_theory.training import Recipe, load_checkpoint, train
from resid_theory.training.checkpoint import Folder

RECIPE = Recipe(
    epochs=6, batch=32, lr=0.05, milestones=(2,), pad=1, precision="float64", nesterov=True
)


def net(seed: int) -> nn.Sequential:
    """Weights, running statistics and a layer that draws random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(6 * 64, 10),
        )


def data(samples: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes that look like images; the last batch of an epoch is smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return x, torch.randint(10, (samples,), generator=generator)


def training(folder: str, nets: int = 1) -> None:
    """The training of every trial: a checkpoint after each step."""
    torch.set_num_threads(1)
    several = [net(seed) for seed in range(nets)]
    train(
        several if nets > 1 else several[0],
        data(),
        RECIPE,
        seed=list(range(nets)) if nets > 1 else 0,
        device="cpu",
        out=folder,
        test=data(50),
        callbacks=[lambda module, moment: {"norm": float(module[0].weight.detach().norm())}],
        every=7,
        stacked=nets > 1,
        save_seconds=0.0,
        progress=False,
    )


def server() -> multiprocessing.context.ForkServerContext:
    """Processes that have torch already imported, so that a kill meets the training."""
    context = multiprocessing.get_context("forkserver")
    # torch.optim imports torch._dynamo when it is first used.
    context.set_forkserver_preload(["torch._dynamo", "resid_theory.training"])
    return context


def killed(context, folder: Path, seconds: float, nets: int) -> bool:
    """Train in a process, kill it so many seconds after its start; whether it was still at it."""
    process = context.Process(target=training, args=(str(folder), nets))
    lock, before = folder / ".lock", time.time()
    process.start()
    while process.is_alive() and not (lock.exists() and lock.stat().st_mtime > before):
        time.sleep(0.001)
    process.join(seconds)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert alive or process.exitcode == 0, process.exitcode
    return alive


def left(folder: Path) -> dict[str, object]:
    """All that a training leaves, except how many seconds it took."""
    found = Folder(folder).load()
    assert found is not None
    tensors, about = found
    about.pop("seconds")
    files = sorted(path for path in folder.iterdir() if path.suffix != ".lock")
    content = {p.name: store.digest(p) for p in files if p.name != "checkpoint.json"}
    return {"about": about, "tensors": sorted(tensors), **content}


def trial(context, reference: dict[str, object], seconds: float, draw, nets: int = 1) -> int:
    """Kill, continue, compare; the number of kills that met the training, at least one."""
    hits = 0
    while not hits:
        folder = Path(tempfile.mkdtemp(prefix="crash-"))
        try:
            planned = [draw.uniform(0, seconds / 2) for _ in range(draw.randint(1, 4))]
            hits = sum(killed(context, folder, moment, nets) for moment in planned)
            assert not killed(context, folder, 600.0, nets)
            found = left(folder)
            assert found == reference, [k for k in found if found[k] != reference.get(k)]
        finally:
            shutil.rmtree(folder)
    return hits


def undisturbed(context, folder: Path, nets: int = 1) -> tuple[dict[str, object], float]:
    """What must be left in the end, and how many seconds it takes to get there."""
    assert not killed(context, folder, 600.0, nets)
    return left(folder), time.time() - (folder / ".lock").stat().st_mtime


def flip(folder: Path, file: Path, draw) -> bool:
    """Flip one random bit of a file, and back; whether reading notices and names it."""
    content = bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    original = bytes(content)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    try:
        read(folder)
    except ValueError as error:
        stem = file.name.split(".")[0]
        return stem in str(error)
    finally:
        file.write_bytes(original)
    return False


def read(folder: Path) -> None:
    """Read every file of a finished training."""
    found = Folder(folder).load()
    assert found is not None
    Folder(folder).rewind(found[1])
    load_checkpoint(folder, net=net(0))


def main(kills: int, flips: int, seed: int) -> None:
    """Print the report."""
    draw = random.Random(seed)
    context = server()
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    undisturbed(context, Path(tempfile.mkdtemp(prefix="crash-")))  # starts the server
    reference, seconds = undisturbed(context, folder)
    print(f"undisturbed: {seconds:.2f} s, a checkpoint after each of 60 steps")
    hits = [trial(context, reference, seconds, draw) for _ in range(kills)]
    repeated = sum(hit > 1 for hit in hits)
    print(
        f"{kills} of {kills} trials bit-identical; {sum(hits)} kills met the training, "
        f"more than once in {repeated} trials"
    )
    files = [path for path in sorted(folder.iterdir()) if path.stat().st_size]
    found = sum(flip(folder, draw.choice(files), draw) for _ in range(flips))
    print(f"{found} of {flips} single-bit flips found and named, in {len(files)} files")
    shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.flips, arguments.seed)
