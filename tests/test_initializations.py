"""Distributions of initial weights: normal numbers of the same generator, scaled; Haar matrices."""

import math

import pytest
import torch

from resid_theory.initializations import INITIALIZATIONS, draw_initial, initializations_for

MATRIX, KERNEL = (3, 5), (3, 5, 2, 7)
XAVIER = math.sqrt(2 / 8)
# Weights and their deviations, whether a factor scales them, the gain, whether orthogonal.
TABLE = {
    "xavier": ({MATRIX: XAVIER}, False, 1.0, False),
    "orthogonal": ({MATRIX: None}, False, 1.0, True),
    "kaiming": ({MATRIX: math.sqrt(2 / 5), KERNEL: math.sqrt(2 / 70)}, False, 2.0, False),
    "zero": ({MATRIX: None}, False, 0.0, False),
    "near_zero": ({MATRIX: XAVIER}, True, 1.0, False),
    "hardt_ma": ({KERNEL: 1 / 42}, False, None, False),  # 14 taps, 3 outputs
    "normal": ({KERNEL: 1.0}, True, None, False),
}


def test_each_initialization_is_for_its_weights():
    for scaled in (True, False):
        for kind, shape in (("matrix", MATRIX), ("kernel", KERNEL)):
            fit = [name for name, (shapes, factor, *_) in TABLE.items()
                   if shape in shapes and (scaled or not factor)]  # fmt: skip
            assert initializations_for(kind, scaled=scaled) == fit
    assert initializations_for("matrix") == initializations_for("matrix", scaled=True)
    for name, row in INITIALIZATIONS.items():
        assert (row.scaled, row.gain, row.orthogonal) == TABLE[name][1:]


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_weights_are_normal_numbers_of_the_generator(name, default):
    torch.set_default_dtype(default)
    for shape, deviation in TABLE[name][0].items():
        for form in ((4, *shape), shape[::-1], (6, 6)):
            given = {"factor": 0.25, "weight_shape": shape}
            found = draw_initial(name, form, torch.Generator().manual_seed(3), **given)
            drawn = torch.Generator().manual_seed(3)
            normal = torch.randn(form, generator=drawn, dtype=torch.float64)
            if deviation is not None:
                scale = deviation * (0.25 if TABLE[name][1] else 1)
                torch.testing.assert_close(found, scale * normal, rtol=1e-14, atol=0.0)
            elif name == "zero":
                assert torch.equal(found, torch.zeros(form, dtype=torch.float64))
            else:  # the only one beside which the normal matrix has a positive diagonal
                tall, given = (m.mT if form[-2] < form[-1] else m for m in (found, normal))
                unit = torch.eye(tall.shape[-1], dtype=torch.float64).expand_as(tall.mT @ tall)
                torch.testing.assert_close(tall.mT @ tall, unit)
                upper = tall.mT @ given
                torch.testing.assert_close(upper, upper.triu(), rtol=0, atol=1e-14)
                assert bool((upper.diagonal(dim1=-2, dim2=-1) > 0).all())
