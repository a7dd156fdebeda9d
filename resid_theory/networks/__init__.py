"""Networks: n-shortcut nets, and convolutional nets as ``nn.Sequential``."""

from resid_theory.networks.blocks import Block, IdentityShortcut
from resid_theory.networks.diracnets import diracnet, diracnet_imagenet
from resid_theory.networks.full import full_net, resnet_imagenet
from resid_theory.networks.layout_net import LayoutNet, layout_of
from resid_theory.networks.preactivation import preresnet
from resid_theory.networks.shortcut import ShortcutNet, draw_weights, initialize
from resid_theory.networks.simplified import simplified_net

__all__ = [
    "Block",
    "IdentityShortcut",
    "LayoutNet",
    "ShortcutNet",
    "diracnet",
    "diracnet_imagenet",
    "draw_weights",
    "full_net",
    "initialize",
    "layout_of",
    "preresnet",
    "resnet_imagenet",
    "simplified_net",
]
