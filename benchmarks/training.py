"""Cost of the trainer: python -m benchmarks.training [--device cuda]; ratios of one run.

The bare loop is zero_grad, forward, backward and step on batches that lie ready as floats. The
trainer's step adds gathering, crops, flips, normalization, schedule, sums and the watch for NaN.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import resid_theory as rt
from benchmarks.timing import line, medians
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.training.checkpoint import Folder, Writer, pack
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.loop import Session
from resid_theory.training.run import RunSettings

BATCH = 128


def images(samples: int = 8 * BATCH) -> rt.Images:
    """Random bytes in the shape of CIFAR-10: time does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (samples, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (samples,), generator=generator)
    return rt.Images(pixels=pixels, labels=labels, mean=(0.5,) * 3, std=(0.25,) * 3)


def session(nets: list[nn.Module], recipe: rt.Recipe, device: torch.device) -> Session:
    """A training that is stepped by hand."""
    settings = RunSettings(
        device=device, save_seconds=1e9, progress=False, process_group=ProcessGroup()
    )
    for net in nets:
        net.to(device)
    samples = DeviceDataset("data", images(), nets[0], recipe)
    return Session(nets, samples, None, recipe, tuple(range(len(nets))), settings)


class Operations(TorchDispatchMode):
    """Counts what is computed inside, views left out.

    Attributes:
        count: Number of operations; on a GPU each one is a kernel or more.
    """

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        returns = func._schema.returns
        self.count += all(r.alias_info is None or r.alias_info.is_write for r in returns)
        return func(*args, **(kwargs or {}))


def operations(device: torch.device) -> None:
    """Operations of a step, which do not depend on the size of a batch, and of its passes alone."""
    nets = {
        "diracnet(34)": (rt.diracnet(34), rt.training.DIRACNETS),
        "diracnet(100)": (rt.diracnet(100), rt.training.DIRACNETS),
        "simplified_net(44)": (rt.simplified_net(44), rt.training.NOISE_STABILITY),
        "preresnet(40)": (rt.preresnet(40), rt.training.DIRACNETS),
    }
    for name, (net, recipe) in nets.items():
        running = session([net.float()], recipe.change(batch=2), device)
        step = trainer_step(running)
        step()  # the first one makes the momenta
        with Operations() as whole:
            step()
        running.optimizer.zero_grad(set_to_none=True)
        with Operations() as passes:
            running.group.gradients([running.plans[0].batch(slice(2))])
        line(f"{name}: operations of a step", f"{whole.count}", "reported")
        line("    of its forward and backward pass", f"{passes.count}", "reported")


def checkpoint(device: torch.device, rounds: int) -> None:
    """A checkpoint of DiracNet-28-5: its size, how long it holds the steps up, and all of it."""
    running = session([rt.diracnet(28, width=5).float()], rt.training.DIRACNETS, device)
    trainer_step(running)()
    tensors = pack(running.group, running.optimizer, running.measurements.sums)
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(place)
        folder.append({})
        writer = Writer(folder, device)
        begin = medians({"begin": lambda: writer.write(tensors, {})}, rounds)["begin"]
        whole = medians({"all": lambda: (writer.write(tensors, {}), writer.finish())}, rounds)[
            "all"
        ]
        size = sum(path.stat().st_size for path in Path(place).iterdir())
    line("diracnet(28, width=5): a checkpoint, MiB", f"{size / 2**20:.1f}", "reported")
    line("    the steps wait for it, ms", f"{1e3 * begin:.0f}", "for its copy on a GPU")
    line("    until it is written, ms", f"{1e3 * whole:.0f}", "reported")


def trainer_step(running: Session):
    """One step of the trainer; positions go round."""
    running.plans = {seed: running.epochs.draw(seed, 0) for seed in running.seeds}
    wait = torch.cuda.synchronize if running.settings.device.type == "cuda" else lambda: None

    def step() -> None:
        running._advance(running.step % running.epochs.steps)
        wait()

    return step


def bare_step(net: nn.Module, recipe: rt.Recipe, device: torch.device):
    """One step of the loop that everybody writes."""
    net = net.to(device).train()
    data = images()
    x = data.inputs(data.pixels, torch.float32).to(device)
    y = data.labels.to(device)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    at = 0
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def step() -> None:
        nonlocal at
        rows = slice(at, at + BATCH)
        at = (at + BATCH) % len(x)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        wait()

    return step


def overhead(device: torch.device, rounds: int) -> None:
    """Trainer over bare loop, step by step in turns."""
    net = rt.simplified_net(20).float()
    recipe = rt.Recipe(batch=BATCH, lr=1e-3)
    plain = recipe.change(augmentation="none")
    reflect = recipe.change(padding="reflect")
    tasks = {"bare": bare_step(copy.deepcopy(net), recipe, device)}
    for name, other in (("none", plain), ("zeros", recipe), ("reflect", reflect)):
        tasks[name] = trainer_step(session([copy.deepcopy(net)], other, device))
    times = medians(tasks, rounds)
    line("simplified_net(20), batch 128, bare step, s", f"{times['bare']:.4f}", "")
    for name in ("none", "zeros", "reflect"):
        ratio = times[name] / times["bare"]
        line(f"    trainer's step / bare step, padding {name}", f"{ratio:.3f}", "<= 1.05 on a CPU")


def parametrization(device: torch.device, rounds: int, depth: int = 28) -> None:
    """A step of a residual or Dirac net over one of the plain net of its shape."""
    recipe = rt.training.DIRACNETS
    for width in (1, 2) if device.type == "cpu" else (1, 4):
        kinds = {k: rt.diracnet(depth, width=width, identity=k).float() for k in ("plain", "dirac")}
        times = medians(
            {k: trainer_step(session([net], recipe, device)) for k, net in kinds.items()}, rounds
        )
        ratio = times["dirac"] / times["plain"]
        goal = "" if width < 4 else "<= 1.10 on a GPU"
        line(f"Dirac / plain, a step of depth {depth}, width {width}", f"{ratio:.3f}", goal)
    both = {k: rt.simplified_net(20, identity=k).float() for k in ("plain", "residual")}
    tasks = {k: trainer_step(session([net], rt.Recipe(lr=1e-3), device)) for k, net in both.items()}
    times = medians(tasks, rounds)
    line("residual / plain, a step of depth 20", f"{times['residual'] / times['plain']:.3f}", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    chosen = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {chosen}")
    operations(chosen)
    checkpoint(chosen, max(3, arguments.rounds // 3))
    overhead(chosen, arguments.rounds)
    parametrization(chosen, max(3, arguments.rounds // 3))
