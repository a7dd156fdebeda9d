"""A GPU that is none: arithmetic of the CPU, tensors that know their device, mixing refused.

Inside ``pretended()`` a tensor that was asked for on ``"cuda"`` says that it is there, and so does
what is computed from it. What CUDA refuses is refused: operations between devices (scalars
excepted), NumPy arrays of tensors on the GPU, generators of the other device, indices on the GPU
for a tensor on the CPU. Random numbers are drawn there from a generator of its own, autocast rounds
as on the CPU, and ``host_waits()`` lists what would wait for the GPU. A graph repeats operations on
the tensors of the time when it was recorded, when nothing may wait. Kernels and
streams are not imitated.
"""

import contextlib
import functools
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["REPLACED", "Generator", "host_waits", "pretended"]

GPU = torch.device("cuda", 0)
GENERATOR = torch.Generator()
WAITS = []
AUTOCAST = torch.autocast
DEVICE, IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__
MAKERS = {
    torch.arange, torch.as_tensor, torch.asarray, torch.empty, torch.empty_strided, torch.eye,
    torch.from_numpy, torch.frombuffer, torch.full, torch.linspace, torch.logspace, torch.ones,
    torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.tril_indices,
    torch.triu_indices, torch.zeros,
}  # fmt: skip
TAKERS = {torch.as_tensor, torch.asarray}  # of a tensor they give the tensor, where it is
RANDOM = {"normal_", "uniform_", "random_", "bernoulli_"}
INDEXING = {
    "aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_",
    "aten::_index_put_impl_", "aten::_unsafe_index_put",
}  # fmt: skip
MOVING = {
    "aten::copy_", "aten::_to_copy", "aten::lift", "aten::lift_fresh", "aten::detach", "aten::set_",
    "aten::copy", "aten::_foreach_copy_", "aten::fill_",
}  # fmt: skip
WAITING = {
    "aten::_local_scalar_dense", "aten::_unique2", "aten::allclose", "aten::bincount",
    "aten::equal", "aten::is_nonzero", "aten::masked_select", "aten::nonzero",
}  # fmt: skip
COPYING = {"as_tensor", "asarray", "cpu", "new_tensor", "tensor", "to"}
# Other calls are what they are on the CPU, unless they ask for a place.
LOOKED_AT = {DEVICE, IS_CUDA, *MAKERS}
LOOKED_AT_BY_NAME = {"__array__", "__deepcopy__", "numpy", "tolist", *RANDOM, *COPYING}
PLACES = {"device", "generator", "pin_memory"}


class Generator(torch.Generator):
    """One on the GPU; it draws what one on the CPU draws."""

    device = GPU


class Graph(TorchDispatchMode):
    """The operations of a CUDA graph; unlike that, it executes them while it is recorded."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        """Write anew what the recorded operations gave."""
        with torch._C.DisableTorchFunction():
            for func, args, kwargs, out in self.calls:
                given = {storage(t) for t in tensors_in([args, kwargs])}
                again = tensors_in(func(*args, **kwargs))
                for old, new in zip(tensors_in(out), again, strict=True):
                    if storage(new) not in given:
                        put(new, place_of(old))
                        old.copy_(new)


CAPTURING = []
NESTS = list, tuple, dict
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


@contextlib.contextmanager
def recorded(graph, *, pool, capture_error_mode="global"):
    """Record what is done inside."""
    if capture_error_mode != "thread_local":
        raise RuntimeError("operation not permitted: another thread may write a checkpoint")
    begun = len(WAITS)
    CAPTURING.append(graph)
    try:
        with graph:
            yield
    finally:
        CAPTURING.pop()
    if WAITS[begun:]:
        raise RuntimeError(f"operation not permitted when stream is capturing: {WAITS[begun:]}")


REPLACED = {
    "CUDAGraph": Graph,
    "Event": mock.MagicMock,
    "Stream": mock.MagicMock,
    "current_stream": mock.MagicMock,
    "current_device": lambda: 0,
    "device": lambda *_: contextlib.nullcontext(),
    "device_count": lambda: 1,
    "empty_cache": lambda: None,
    "get_device_name": lambda *_: "pretended",
    "graph": recorded,
    "graph_pool_handle": lambda: 0,
    "get_rng_state": lambda *_: GENERATOR.get_state(),
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: bool(CAPTURING),
    "is_initialized": lambda: True,
    "manual_seed": GENERATOR.manual_seed,
    "manual_seed_all": GENERATOR.manual_seed,
    "mem_get_info": lambda *_: (1 << 33, 1 << 34),
    "memory_allocated": lambda *_: 0,
    "memory_reserved": lambda *_: 0,
    "set_rng_state": lambda state, *_: GENERATOR.set_state(state),
    "stream": lambda _: contextlib.nullcontext(),
    "synchronize": lambda *_: WAITS.append("synchronize"),
}


def kind(device):
    """``"cpu"`` or ``"cuda"``, whichever way it is given."""
    return "cuda" if isinstance(device, int) else torch.device(device).type


def tensors_in(nest):
    """The tensors of a call's arguments, or of what it gives."""
    if isinstance(nest, Tensor):
        return [nest]
    if not isinstance(nest, NESTS):
        return []
    found = []
    for each in nest.values() if isinstance(nest, dict) else nest:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, NESTS):
            found += tensors_in(each)
    return found


def storage(tensor):
    """What views share, and what lives as long as they do."""
    with torch._C.DisableTorchFunction():
        return _storage(tensor)


def _storage(tensor):
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def place_of(tensor):
    """Where a tensor pretends to be; "any" if it was made where nothing was asked for."""
    return getattr(storage(tensor), "pretended_place", "cpu")


def put(tensor, place):
    """Let it, and all that share its memory, pretend to be there."""
    storage(tensor).pretended_place = place


@functools.cache
def facts(func):
    """The name of an operation, and whether it draws; torch looks both up anew each time."""
    return func._schema.name, torch.Tag.nondeterministic_seeded in func.tags


@contextlib.contextmanager
def drawing():
    """Draw from the GPU's generator inside."""
    here = torch.get_rng_state()
    torch.set_rng_state(GENERATOR.get_state())
    try:
        yield
    finally:
        GENERATOR.set_state(torch.get_rng_state())
        torch.set_rng_state(here)


def autocast(device_type, *args, **kwargs):
    """Autocast of the CPU in place of the GPU's."""
    return AUTOCAST("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextlib.contextmanager
def host_waits():
    """A list, filled at the end with what made the host wait for the GPU inside."""
    begun, found = len(WAITS), []
    yield found
    found += WAITS[begun:]


class Functions(TorchFunctionMode):
    """Calls as they are written: devices asked for and told."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        looked_at = func in LOOKED_AT or name in LOOKED_AT_BY_NAME or PLACES.intersection(kwargs)
        if not looked_at or name == "_parse_to":  # Module.to's, which calls Tensor.to thereafter
            return func(*args, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        own = place_of(args[0]) if args and isinstance(args[0], Tensor) else None
        if func == DEVICE:
            return GPU if own == "cuda" else func(*args)
        if func == IS_CUDA:
            return own == "cuda"
        if name in ("numpy", "__array__") and own == "cuda":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "tolist" and own == "cuda":
            WAITS.append(name)
        args, wanted = self._wanted(func, list(args), kwargs)
        self._check_generator(func, name, kwargs.get("generator"), wanted, own)
        self._note_copy(name, kwargs, wanted, own)
        there = func in MAKERS and wanted == "cuda" and "generator" not in kwargs
        with drawing() if there else contextlib.nullcontext():
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            out = self._placed(func, name, args, out, wanted, own)
        return out

    def _wanted(self, func, args, kwargs):
        """The arguments with the CPU in place of the GPU, and which of them was asked for."""
        wanted = None
        if kwargs.get("device") is not None and kind(kwargs["device"]) != "meta":
            wanted = kind(kwargs["device"])
            kwargs["device"] = "cpu"
        if func is Tensor.to:
            for place, given in enumerate(args[1:], 1):
                if isinstance(given, Tensor):
                    wanted = place_of(given)
                elif isinstance(given, (str, torch.device)):
                    wanted, args[place] = kind(given), "cpu"
        return args, "cpu" if func is Tensor.cpu else wanted

    def _check_generator(self, func, name, generator, wanted, own):
        place = (wanted or "cpu") if func in MAKERS else own if name in RANDOM else None
        if generator is not None and place not in (None, generator.device.type):
            raise RuntimeError(
                f"Expected a {place!r} device type for generator but found "
                f"{generator.device.type!r}"
            )

    def _note_copy(self, name, kwargs, wanted, own):
        """Copies between the host and the GPU wait, unless they are asked not to."""
        if name not in COPYING or kwargs.get("non_blocking"):
            return
        source = "cpu" if own is None or name == "new_tensor" else own
        if source != (wanted or own or "cpu"):
            WAITS.append(f"{name} from {source}")

    def _placed(self, func, name, args, out, wanted, own):
        if name in ("__deepcopy__", "new_tensor"):
            put(out, wanted or own)
        elif wanted is not None:
            if own not in (None, wanted) and storage(out) is storage(args[0]):
                out = out.clone()
            put(out, wanted)
        elif func in MAKERS and not (func in TAKERS and own is not None):
            put(out, "cpu")
        return out


class Operations(TorchDispatchMode):
    """What the calls come down to: devices held against each other."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # a third of the time, and nothing here is compiled

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():  # once, for all places that are looked up
            return self._run(func, args, kwargs or {})

    def _run(self, func, args, kwargs):
        name, draws = facts(func)
        given = tensors_in(args)
        if kwargs:
            given += tensors_in(kwargs)
        places = [getattr(_storage(t), "pretended_place", "cpu") for t in given]
        alike = len({*places}) == 1 and name not in INDEXING
        if alike or places and name in MOVING:
            place = places[0]
        else:
            place = self._common(name, args, given, places)
        there = "cuda" in places
        copies = name == "aten::copy_" and len({*places}) > 1 and not args[2:3] == (True,)
        if there and (name in WAITING or copies):
            WAITS.append(name)
        if draws and (there or "any" in places):
            with drawing():
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        for made in tensors_in(out):
            if not [tensor for tensor in given if tensor is made]:
                _storage(made).pretended_place = place
        return out

    def _common(self, name, args, given, places):
        if name in INDEXING:
            own = place_of(args[0])
            indices = [i for i in args[1] if isinstance(i, Tensor)]
            positions = [place_of(i) for i in indices]
            counted = name == "aten::index" and any(i.dtype == torch.bool for i in indices)
            if own == "cuda" and (counted or "cpu" in positions):
                WAITS.append(name)
            value = args[2] if len(args) > 2 and isinstance(args[2], Tensor) else None
            apart = value is not None and value.dim() and place_of(value) != own
            if own == "cpu" and "cuda" in positions or apart:
                raise RuntimeError(f"{name}: indices or values on another device: {places}")
            return own
        if "cuda" not in places:
            # Made from nothing, below the calls that say where: CUDA's kernels make theirs there.
            return "cpu" if "cpu" in places else "any"
        if any(p == "cpu" and t.dim() for p, t in zip(places, given, strict=True)):
            shapes = [(place, *t.shape) for place, t in zip(places, given, strict=True)]
            raise RuntimeError(f"{name}: expected all tensors on the same device: {shapes}")
        return "cuda"


@contextlib.contextmanager
def pretended():
    """A GPU inside."""
    GENERATOR.manual_seed(0)
    WAITS.clear()
    with (
        mock.patch.multiple(torch.cuda, **REPLACED),
        mock.patch.object(torch, "autocast", autocast),
        Functions(),
        Operations(),
    ):
        yield
