"""Convolutional trunks as ``nn.Sequential``: ``net[i:j]`` is the map between layers i and j."""

from resid_theory.networks.dirac import diracnet, diracnet_imagenet
from resid_theory.networks.full import full_net, resnet_imagenet
from resid_theory.networks.parts import Block, IdentityShortcut
from resid_theory.networks.preactivation import preresnet
from resid_theory.networks.simplified import simplified_net

__all__ = [
    "Block",
    "IdentityShortcut",
    "diracnet",
    "diracnet_imagenet",
    "full_net",
    "preresnet",
    "resnet_imagenet",
    "simplified_net",
]
