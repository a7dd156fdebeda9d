"""Small data and nets for trainings of a fraction of a second, and what makes them fail."""

import json

import torch
from torch import nn

import resid_theory as rt
from resid_theory.runtime import store
from resid_theory.training import Recipe, train

# Three epochs of four steps with the images below, the last one smaller.
RECIPE = Recipe(epochs=3, batch=32, lr=0.05, milestones=(2,), pad=1, precision="float64", warmup=1)


def images(samples=100, classes=10, seed=0):
    """Random images of 8 x 8 with random labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (samples,), generator=generator)
    return rt.Images(pixels=pixels, labels=labels, mean=(0.5,), std=(0.3,))


def conv_net(seed=0, norm=True, noise=0.0):
    """One convolution, with BatchNorm and Dropout if asked for."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=not norm),
        *([nn.BatchNorm2d(6)] if norm else []),
        nn.ReLU(),
        *([nn.Dropout(noise)] if noise else []),
        nn.Flatten(),
        nn.Linear(6 * 64, 10),
    )


def fit(net, data=None, recipe=RECIPE, *, seed=0, **settings):
    """Train on the CPU without a progress bar, unless asked otherwise."""
    settings = {"progress": False, "device": "cpu", **settings}
    return train(net, images() if data is None else data, recipe, seed=seed, **settings)


def difference(first, second):
    """Largest difference over the largest weight; running statistics included."""
    first, second = first.state_dict(), second.state_dict()
    scale = max(float(t.double().abs().max()) for t in first.values())
    return max(float((first[k] - second[k]).double().abs().max()) for k in first) / scale


def left(folder):
    """What a training leaves, except how many seconds it took."""
    about = json.loads((folder / "checkpoint.json").read_text())["manifest"]
    about["about"].pop("seconds")
    files = {p.name: store.digest(p) for p in folder.iterdir() if p.suffix == ".safetensors"}
    return about, files, (folder / "metrics.jsonl").read_bytes()


class Poison(nn.Module):
    """Adds a value to its input in the forward or the backward pass, from one training step on."""

    def __init__(self, value, at, *, backward=False):
        super().__init__()
        self.value, self.at, self.backward, self.calls = value, at, backward, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls < self.at or not self.training:
            return x
        if not self.backward:
            return x + self.value
        x = x + 0
        x.register_hook(lambda gradient: gradient + self.value)
        return x


class Greedy(nn.Module):
    """Runs out of memory where a batch is too large."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error = most, error

    def forward(self, x):
        if self.training and len(x) > self.most:
            raise self.error
        return x


class Interrupted(Exception):
    """What a test throws into a training."""


def interrupt_at(step):
    """A callback that ends a training at a step."""

    def callback(net, moment):
        if moment.step == step:
            raise Interrupted

    return callback
