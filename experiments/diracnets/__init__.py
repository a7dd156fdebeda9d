"""Zagoruyko & Komodakis, "DiracNets" (arXiv:1706.00388v2), as claims."""

from experiments.diracnets import depth, fold, imagenet, layer, scales, start, tables

CLAIMS = [
    *depth.CLAIMS,
    *start.CLAIMS,
    *scales.CLAIMS,
    *tables.CLAIMS,
    *imagenet.CLAIMS,
    *fold.CLAIMS,
    *layer.CLAIMS,
]
