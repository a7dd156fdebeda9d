r"""The identity in a weight: ID entries, parametrizations, initialization, decay.

A layer's effective weight is :math:`\hat W = a I + R`: plain a = 0, residual a = 1, Dirac a learned
and R of learned norm. Everything here follows from the kernel I, whose ones are the ID entries.
"""

from resid_theory.identity.decay import IdDecay, id_mask, shifted, undecayed
from resid_theory.identity.dirac_weights import DiracWeights
from resid_theory.identity.identity_kernel import (
    RULES,
    id_entries,
    identity_kernel,
    identity_map,
    identity_of,
    mark,
)
from resid_theory.identity.init import initialize_layer
from resid_theory.identity.layer_weight import (
    current_weight,
    id_rule,
    identity_removed,
    layer_identity,
    parametrizations_of,
    trained_weight,
    weight_and_rest,
)
from resid_theory.identity.parametrizations import (
    AddIdentity,
    DiracWeight,
    DominantWeight,
    ResidualWeight,
    with_identity,
)

__all__ = [
    "RULES",
    "AddIdentity",
    "DiracWeight",
    "DiracWeights",
    "DominantWeight",
    "IdDecay",
    "ResidualWeight",
    "current_weight",
    "id_entries",
    "id_mask",
    "id_rule",
    "identity_kernel",
    "identity_map",
    "identity_of",
    "identity_removed",
    "initialize_layer",
    "layer_identity",
    "mark",
    "parametrizations_of",
    "shifted",
    "trained_weight",
    "undecayed",
    "weight_and_rest",
    "with_identity",
]
