"""A device that is none: tensors on it are held by the CPU, but say that they lie elsewhere (on `meta`).

What a GPU would do with a step can so be seen without one: an operation on tensors of two devices is an error, and each
place where the host would wait for a GPU is remembered.
"""

import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
# the host must know what these find before it can go on: a number, or how large the result is
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.masked_select,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_}
OURS = Path(__file__).resolve().parents[1]


class OnDevice(torch.Tensor):
    """A tensor of the device, whose values `held` has."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, **_) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended device outside of `PretendDevice`")


class _Tensors(TorchFunctionMode):
    """What is not seen below Python: numbers of the host that become a tensor of the device (`torch.tensor(numbers,
    device=...)`, `values[numbers]`), for which it waits as their memory is not pinned; and `tolist`."""

    def __init__(self, device: "PretendDevice"):
        self.pretended = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        to = kwargs.get("device")
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            self.pretended.remember()
            return args[0].held.tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], OnDevice):
            numbers = [torch.tensor(one, dtype=args[0].dtype) for one in args[2:] if not isinstance(one, torch.Tensor)]
            args = (
                args[0],
                self._there(args[1]),
                *(numbers or args[2:]),
            )  # (a number is given to a GPU's kernel as such)
        if func in (torch.tensor, torch.as_tensor) and to is not None and torch.device(to) == DEVICE:
            del kwargs["device"]
            made = func(*args, **kwargs)
            if isinstance(made, OnDevice):
                return made
            self.pretended.remember()
            return OnDevice(made)
        return func(*args, **kwargs)

    def _there(self, index):
        """An index with its lists of numbers as tensors."""
        if isinstance(index, tuple):
            return tuple(map(self._there, index))
        if not isinstance(index, list):
            return index
        self.pretended.remember()
        return OnDevice(torch.tensor(index))


class PretendDevice(TorchDispatchMode):
    """Within `with PretendDevice() as device:` there is such a device.

    Attributes:
        waits: the function of this package in which the host waited -> how often.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._tensors = _Tensors(self)

    def __enter__(self):
        self._tensors.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._tensors.__exit__(*error)

    def remember(self) -> None:
        frames = [(Path(frame.filename).resolve(), frame.name) for frame in traceback.extract_stack()]
        ours = [name for path, name in frames if path.is_relative_to(OURS) and not {"tests", ".venv"} & {*path.parts}]
        self.waits[ours[-1] if ours else "backward"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        there: list[OnDevice] = []
        here: list[torch.Tensor] = []

        def sort(value):
            if isinstance(value, OnDevice):
                there.append(value)
            elif isinstance(value, torch.Tensor) and value.ndim > 0:
                here.append(value)

        tree_map(sort, (args, kwargs))
        to = kwargs.get("device")
        made_there = bool(there) if to is None else torch.device(to) == DEVICE
        if there and here and packet not in COPIES:
            shapes = ", ".join(str(tuple(value.shape)) for value in here)
            raise RuntimeError(f"{func} of tensors on the device, and of others, {shapes}, that are not")
        crosses = packet in COPIES and (bool(there) != made_there or (there and here))
        asynchronous = kwargs.get("non_blocking") or (packet is aten.copy_ and args[2:] and args[2])
        if (crosses and not asynchronous) or (there and self._waits(packet, args, kwargs)):
            self.remember()
        if to is not None and made_there:
            kwargs["device"] = torch.device("cpu")
        known = {id(value.held): value for value in there}
        result = func(*_held(args), **_held(kwargs))
        if packet is aten.copy_:
            return args[0]

        def wrap(value):
            if not isinstance(value, torch.Tensor) or not made_there:
                return value
            return known[id(value)] if id(value) in known else OnDevice(value)

        return tree_map(wrap, result)

    @staticmethod
    def _waits(packet, args, kwargs) -> bool:
        if packet is aten.repeat_interleave:
            return kwargs.get("output_size") is None
        if packet in INDEXING:
            masks = [one for one in args[1] if one is not None and one.dtype == torch.bool]
            filled = packet is not aten.index and args[2].numel() == 1 and not isinstance(args[2], OnDevice)
            return bool(masks) and not filled
        return packet in WAITING


def _held(values):
    return tree_map(lambda value: value.held if isinstance(value, OnDevice) else value, values)


def to_device(module: torch.nn.Module) -> torch.nn.Module:
    """Moves a module's weights and buffers there, in place; what shares a weight goes on sharing it."""
    moved: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                if id(weight) not in moved:
                    moved[id(weight)] = torch.nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
                part._parameters[name] = moved[id(weight)]
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = moved.setdefault(id(values), OnDevice(values))
    return module
