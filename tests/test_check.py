"""Checks: each message names the argument, what was given and what is needed."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

import resid_theory as rt
from resid_theory._check import (
    as_generator,
    as_tensor,
    check_choice,
    check_finite,
    check_int,
    check_names,
    check_positive,
    check_seed,
    check_within,
)
from resid_theory.runtime.weight_files import misfits

NAMES = ("xavier", "orthogonal", "near_zero")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("xavie", "xavier"), ("ORTHOGONAL", "orthogonal"), ("near-zero", "near_zero")],
)
def test_the_nearest_name_is_offered(given, nearest):
    with pytest.raises(ValueError, match=f"kind: unknown name '{given}'; did you mean '{nearest}'"):
        check_choice("kind", given, NAMES)


@pytest.mark.parametrize("given", ["qqqq", "", None, 3], ids=repr)
def test_far_names_list_the_choices_without_a_guess(given):
    with pytest.raises(ValueError, match="kind: unknown name") as caught:
        check_choice("kind", given, NAMES)
    assert "did you mean" not in str(caught.value)
    assert str(caught.value).endswith("choose from 'xavier', 'orthogonal', 'near_zero'")


def test_a_known_name_comes_back():
    assert [check_choice("kind", name, NAMES) for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("given", [1, 7, np.int32(7), np.uint8(7)], ids=repr)
def test_whole_numbers(given):
    result = check_int("blocks", given)
    assert type(result) is int and result == given


@pytest.mark.parametrize("given", [True, 2.0, "2", None, np.float64(2), torch.tensor(2)], ids=repr)
def test_not_whole_numbers(given):
    with pytest.raises(ValueError, match=r"^blocks: got .*, needs a whole number of at least 1"):
        check_int("blocks", given)


@pytest.mark.parametrize(("given", "minimum"), [(0, 1), (-3, 1), (2, 3)])
def test_too_small(given, minimum):
    with pytest.raises(ValueError, match=f"^blocks: got {given}, needs at least {minimum}$"):
        check_int("blocks", given, minimum)


@pytest.mark.parametrize("given", [1e-300, 3, np.float32(0.5), torch.tensor(2.0)], ids=repr)
def test_positive_numbers(given):
    assert check_positive("scale", given) == float(given)


@pytest.mark.parametrize("given", [0, -1, float("inf"), float("nan"), "1", None, []], ids=repr)
def test_not_positive_numbers(given):
    with pytest.raises(ValueError, match=r"^scale: got .*, needs a finite number above 0"):
        check_positive("scale", given)


read_only = np.arange(6.0).reshape(2, 3)
read_only.setflags(write=False)
ARRAYS = {
    "list": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    "read-only": read_only,
    "broadcast": np.broadcast_to(np.arange(3.0), (2, 3)) + [[0], [3]],
    "big-endian": np.arange(6.0).reshape(2, 3).astype(">f8"),
    "transposed": np.arange(6.0).reshape(2, 3).T.copy().T,
    "negative stride": np.arange(5.0, -1.0, -1.0).reshape(2, 3)[::-1, ::-1],  # torch has none
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_become_tensors(kind):
    found = as_tensor("x", ARRAYS[kind])
    assert torch.equal(found, torch.arange(6.0).reshape(2, 3)) and found.is_contiguous()


def test_memory_is_shared_where_possible():
    array, tensor = np.zeros(3), torch.zeros(3)
    assert as_tensor("x", tensor) is tensor
    as_tensor("x", array)[1] = 7.0
    assert array[1] == 7.0


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        pytest.param("digits", "needs a tensor or an array", id="string"),
        pytest.param(None, "needs a tensor or an array", id="none"),
        pytest.param([[1.0], [1.0, 2.0]], "needs a tensor or an array", id="ragged"),
        pytest.param(np.ones(2) + 1j, "complex128, needs real numbers", id="complex-array"),
        pytest.param(torch.ones(2) + 1j, "needs real numbers", id="complex-tensor"),
        pytest.param(torch.ones(2, 2).to_sparse(), "sparse_coo, needs a dense", id="sparse"),
        pytest.param(torch.ones(2, 2).to_mkldnn(), "mkldnn, needs a dense", id="mkldnn"),
    ],
)
def test_not_arrays_of_real_numbers(given, needed):
    with pytest.raises(ValueError, match=f"^x: got .*{needed}"):
        as_tensor("x", given)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_the_first_entry_that_is_not_finite_is_named(bad):
    given = torch.zeros(4, 5)
    given[2, 3] = given[3, 0] = bad
    with pytest.raises(ValueError, match=rf"^x: entry \(2, 3\) is {bad} \(2 of 20 entries"):
        check_finite("x", given)


@pytest.mark.parametrize(
    "given",
    [
        torch.full((9,), 1e308, dtype=torch.float64), torch.full((9,), 6e4, dtype=torch.float16),
        torch.arange(3), torch.zeros(0),
    ],
    ids=["sum-overflows", "half-sum-overflows", "integers", "empty"],
)  # fmt: skip
def test_finite_tensors_pass(given):
    assert check_finite("x", given) is given


def test_a_generator_is_taken_as_it_is_and_a_seed_begins_one():
    generator = torch.Generator()
    assert as_generator(generator) is generator
    drawn = [torch.rand(2, generator=as_generator(seed)) for seed in (7, np.int64(7), 8)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("given", [True, 2.5, None, "0"], ids=repr)
def test_not_generators(given):
    with pytest.raises(ValueError, match="^generator: got .*, needs a torch.Generator or a seed$"):
        as_generator(given)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"b": None, "c": torch.ones(1)}, "missing: 'b'; unexpected: 'c'"),
        ({"a": torch.ones(2, 1)}, "of another shape: 'a' (2, 1) for (1, 2)"),
        ({"c": torch.ones(4)}, "unexpected: 'c'"),
    ],
)
def test_differences_of_two_states_are_described(changes, says):
    wanted = {"a": torch.ones(1, 2), "b": torch.ones(3)}
    found = {name: value for name, value in {**wanted, **changes}.items() if value is not None}
    assert misfits(wanted, found) == says


@pytest.mark.parametrize("given", [0, 2.5, 100, np.float32(7), torch.tensor(7.0)], ids=repr)
def test_numbers_within(given):
    assert check_within("percent", given, 0, 100) == float(given)


@pytest.mark.parametrize("given", [-1e-9, 100.1, float("nan"), float("inf"), "1", None], ids=repr)
def test_numbers_outside(given):
    with pytest.raises(ValueError, match=r"^percent: got .*, needs a number in \[0, 100\]$"):
        check_within("percent", given, 0, 100)


@pytest.mark.parametrize(
    ("ends", "inside"), [("[]", (0, 2)), ("()", ()), ("[)", (0,)), ("(]", (2,))]
)
def test_an_end_belongs_to_it_where_its_bracket_is_square(ends, inside):
    for given in (0, 0.5, 2):
        if given == 0.5 or given in inside:
            assert check_within("x", given, 0, 2, ends) == given
            continue
        with pytest.raises(ValueError) as refused:
            check_within("x", given, 0, 2, ends)
        assert str(refused.value) == f"x: got {given}, needs a number in {ends[0]}0, 2{ends[1]}"


def test_one_name_is_a_list_of_it():
    assert check_names("layers", "conv1") == ["conv1"]
    assert check_names("layers", ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize("given", [3, [], None, [0], ["a", 1]], ids=repr)
def test_not_names(given):
    with pytest.raises(ValueError, match=r"^layers: got .*, needs a list of names$"):
        check_names("layers", given)


def test_of_many_wrong_names_a_few_are_shown():
    with pytest.raises(ValueError) as refused:
        check_names("layers", list(range(1000)))
    assert str(refused.value) == "layers: got [0, 1, 2, 3, 4, 5, ...], needs a list of names"


@pytest.mark.parametrize("given", [0, 2**64 - 1, np.uint8(3)], ids=repr)
def test_seeds(given):
    assert check_seed("seed", given) == given


def test_generators_take_negative_seeds_as_torch_does():
    assert as_generator(-(2**63)).initial_seed() == 2**63
    with pytest.raises(ValueError, match=r"^generator: got -\d+, needs at least -\d+$"):
        as_generator(-(2**63) - 1)


def test_seeds_that_torch_does_not_take():
    with pytest.raises(ValueError, match=r"^seed: got -1, needs at least 0$"):
        check_seed("seed", -1)
    for call in (lambda seed: check_seed("generator", seed), as_generator):
        with pytest.raises(ValueError, match=r"^generator: got \d+, needs a seed below 2\*\*64$"):
            call(2**64)


# -- what a slip of the hand meets -----------------------------------------------------------------

PAIR = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
LINEAR, TWO = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
LEVELS, MATRIX = rt.Spectrum.of([1.0, 2.0]), torch.eye(8)
ONCE = rt.Recipe(epochs=1, batch=2, milestones=(), augmentation="none")
SLIPS = {
    "data before loss": (
        lambda: rt.spectrum(LINEAR, PAIR, "cross_entropy"),
        "^loss: got tuple, needs a name, a function or a loss of torch.nn$",
    ),
    "class of a loss": (
        lambda: rt.spectrum(LINEAR, nn.CrossEntropyLoss, PAIR),
        r"^loss: got the class CrossEntropyLoss, needs CrossEntropyLoss\(\)$",
    ),
    "name of data": (lambda: rt.spectrum(LINEAR, "square", "digits"), "^data: got str, needs"),
    "labels of a squared error": (
        lambda: rt.curvature.kfac(LINEAR.float(), "square", PAIR), r"^data y: got shape \(4,\)",
    ),
    "matrix as eigenpairs": (
        lambda: rt.spectral_density(MATRIX, deflate=MATRIX), "^deflate: got Tensor, needs",
    ),
    "threshold": (
        lambda: rt.spectral_density(MATRIX, steps=2).share_below(float("nan")),
        "^threshold: got nan, needs",
    ),
    "rank": (lambda: LEVELS.magnitude(2), "^rank: got 2, needs a rank below 2"),
    "negative rank": (lambda: LEVELS.magnitude(-1), "^rank: got -1, needs at least 0"),
    "list as spectrum": (lambda: LEVELS.distance([1.0]), "^other: got list, needs a Spectrum"),
    "names in one word": (lambda: rt.to_residual(TWO, "01"), "^layers: unknown name '01'"),
    "no names": (lambda: rt.layer_cushions(TWO, PAIR, layers=[]), r"^layers: got \[\], needs a"),
    "block": (
        lambda: rt.stability.block_cushions(TWO, PAIR, blocks="01"), "^blocks: unknown name '01'",
    ),
    "no net": (lambda: rt.id_mask(5), "^net: got int, needs a torch.nn.Module"),
    "no optimizer": (lambda: rt.IdDecay("sgd", TWO), "^optimizer: got str, needs"),
    "decay of no net": (
        lambda: rt.IdDecay(torch.optim.SGD(TWO.parameters()), 5), "^net: got int, needs",
    ),
    "optimizer that is made": (
        lambda: rt.check_equivalence(TWO, TWO, PAIR, optimizer=torch.optim.SGD(TWO.parameters())),
        "^optimizer: got SGD(.|\n)*, needs a function of the parameters",
    ),
    "device": (
        lambda: rt.layer_cushions(TWO, PAIR, device="gpu"), "^device: got 'gpu', which torch",
    ),
    "bytes in words": (
        lambda: rt.hessian(LINEAR, "cross_entropy", PAIR, memory_limit="1 GB"),
        "^memory_limit: got '1 GB', needs a number in",
    ),
    **{f"negative bytes {name}": (
        lambda call=call: call(LINEAR, "cross_entropy", PAIR, memory_limit=-0.5),
        r"^memory_limit: got -0.5, needs a number in \[0, inf\)",
    ) for name, call in (("of products", rt.curvature_operator), ("of a matrix", rt.hessian))},
    "negative decay": (
        lambda: rt.hessian(LINEAR, "cross_entropy", PAIR, weight_decay=-1),
        r"^weight_decay: got -1, needs a number in \[0, inf\)",
    ),
    "names of blocks in one word": (
        lambda: rt.shortcuts(TWO, blocks="01"), "^blocks: unknown name '01'",
    ),
    "one k": (lambda: rt.evaluate(LINEAR, PAIR, top=1), r"^top: got 1, needs a list .* \[1\]$"),
    "number as a path": (lambda: rt.save_checkpoint(3, LINEAR), "^path: got 3, needs a path"),
    "empty path": (lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, out=""), "^out: got '', needs a"),
    "folder in a file": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, out=f"{__file__}/x", progress=False),
        "^out: .* cannot be a folder: Not a directory$",
    ),
    "one callback": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, callbacks=print), "^callbacks: got <built-in",
    ),
    "no callback": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, callbacks=[3]), "^callbacks: got 3, needs",
    ),
    "number of a callback": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, callbacks=[lambda *_: 3], progress=False),
        "^callbacks: got int from <function .*, needs a mapping",
    ),
    "step to stop at": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, stop=3), "^stop: got 3, needs a function",
    ),
    "correction in words": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, correction="id"),
        "^correction: got 'id', needs a function",
    ),
    "rate in words": (lambda: rt.Recipe(lr="0.1"), "^lr: got '0.1', needs a finite number"),
    "second net": (
        lambda: rt.train([LINEAR, nn.Linear(2, 2)], PAIR, ONCE, seed=0, progress=False),
        "^data x: the net does not take",
    ),
    "one net twice": (
        lambda: rt.train([LINEAR, LINEAR], PAIR, ONCE, seed=0),
        r"^net: got \[Linear, Linear\], needs a module, or a list of modules that are not",
    ),
    "file for a folder": (
        lambda: rt.train(LINEAR, PAIR, ONCE, seed=0, out=__file__), "^out: .* is a file, needs",
    ),
    "value of an axis": (
        lambda: rt.sweep.grid_of({"task": "hessian", "seed": [0, 1, 0]}),
        r"^seed: got \[0, 1, 0\], needs every value once",
    ),
    "no result to draw": (lambda: rt.plots.spectrum(MATRIX), "^measured: got Tensor, needs Sp"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_are_named(slip):
    call, says = SLIPS[slip]
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("argument", ["percentile", "tolerance", "missed", "probes", "steps"])
def test_options_of_spectra_are_checked_where_no_product_is_taken(argument):
    with pytest.raises(ValueError, match=f"^{argument}: got -1, needs"):
        rt.spectrum(LINEAR, "cross_entropy", PAIR, method="dense", **{argument: -1})


CURVATURE = [rt.curvature_operator, rt.hessian, rt.hessian_spectrum, rt.spectrum]
ESTIMATES = [rt.spectrum, rt.eigen.spectral_estimates, rt.curvature_callback]
SEARCHES = [rt.spectrum, rt.eigen.spectral_estimates, rt.eigenpairs]
PASSES = [rt.stability.activation_noise, rt.stability.block_cushions, rt.interlayer_cushions,
          rt.stability.compression_bound]  # fmt: skip
# Functions in which an argument of one name has one default.
ALIKE = {
    "batch": [*PASSES, rt.stability.interlayer_smoothness],
    "batchnorm": [*CURVATURE[:3], rt.curvature.batch_spectra, rt.curvature_callback,
                  rt.curvature.hessian_cost, rt.layer_cushions, *PASSES[1:3]],
    "budget": [rt.trace, rt.frobenius_norm],
    "classes": [rt.networks.diracnet, rt.networks.full_net, rt.networks.preresnet,
                rt.networks.simplified_net],
    "damping": [rt.eigen.LinearOperator.solve, rt.curvature.KroneckerOperator.solve],
    "generator": [
        rt.curvature_operator, rt.curvature.batch_spectra, rt.curvature.filter_directions,
        rt.curvature.kfac, rt.curvature.layer_table, rt.spectrum, rt.eigenpairs, rt.frobenius_norm,
        rt.spectral_density, rt.eigen.spectral_estimates, rt.trace, rt.networks.diracnet,
        rt.networks.diracnet_imagenet, rt.networks.full_net, rt.networks.preresnet,
        rt.networks.resnet_imagenet, rt.networks.simplified_net, rt.networks.draw_weights,
        *PASSES, rt.stability.interlayer_smoothness, rt.stability.weight_noise,
        rt.compare_cushions, rt.theory.interpolate,
    ],
    "k": SEARCHES,
    "method": [*CURVATURE[1:], rt.curvature.hessian_cost, *PASSES[1:3]],
    "missed": SEARCHES,
    "percentile": [*ESTIMATES[:2], rt.eigen.SpectrumReport.of],
    "probes": [*ESTIMATES, rt.spectral_density],
    "progress": [*CURVATURE, *SEARCHES, rt.spectral_density, rt.trace, rt.frobenius_norm, *PASSES,
                 rt.layer_cushions, rt.stability.weight_noise, rt.dominant_flows, rt.evaluate],
    "steps": [*ESTIMATES, rt.spectral_density],
    "tolerance": [*SEARCHES, rt.curvature_callback, rt.curvature.batch_spectra,
                  rt.curvature.layer_table],
    "weight_decay": CURVATURE,
}  # fmt: skip


@pytest.mark.parametrize("argument", ALIKE)
def test_an_argument_of_one_name_has_one_default(argument):
    found = [inspect.signature(function).parameters[argument].default
             for function in ALIKE[argument]]  # fmt: skip
    assert inspect.Parameter.empty not in found
    assert found == [found[0]] * len(found)
    # What draws does it alike in every call, and what measures prints nothing unasked.
    assert {"generator": 0, "progress": False}.get(argument, found[0]) == found[0]
