"""A data set and a net on which a training takes a fraction of a second."""

import torch
from torch import nn

import resid_theory as rt


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
