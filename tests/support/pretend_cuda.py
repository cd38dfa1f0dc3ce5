"""A CUDA device in name: its tensors say `cuda:0`, compute on the CPU, and refuse a tensor of
another device in the same operation, as CUDA does.

Numbers are real, so whole programs run. There is no memory, no kernel and no other device: what is
seen here is where tensors are, what is computed, and what makes the host wait. `cuda_library`
must be loaded before torch is imported."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.cuda_functions import functions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
ROOT = Path(__file__).parents[2]
# these take tensors of both devices, and their result is where their first tensor is
_TAKE_BOTH = {
    aten.copy_.default,
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.set_.source_Tensor,
}
# these take no number of the CPU either
_TAKE_NO_NUMBER = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.cat.default}
# their result is a number of the host, or its shape is one
_WAIT = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
_LIBRARIES = ("transformers/", "peft/", "bitsandbytes/", "deepspeed/")


class DeviceMismatchError(RuntimeError):
    """Tensors of two devices in one operation."""


class DeviceTensor(Tensor):
    """A tensor on the device in name. `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("cuda", 0),
            requires_grad=False,
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _devices[-1].call(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "DeviceTensor") -> None:
        Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.inner = other.inner

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch's own method takes no subclass

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: Any) -> "DeviceTensor":
        tensor = DeviceTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        tensor.__dict__.update({k: v for k, v in self.__dict__.items() if k != "inner"})
        return tensor


@dataclass
class Device:
    """The device, and what it counts."""

    kernels: Counter[str] = field(default_factory=Counter)  # per operator; views are none
    # what made the host wait, per line of a program
    syncs: Counter[str] = field(default_factory=Counter)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        is_here = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if is_here:
            if func is not aten._to_copy.default and func not in _TAKE_BOTH:
                _check_devices(func, tensors)
            if not func.is_view:
                self.kernels[func.name()] += 1
            if func is aten._fused_sdp_choice.default:
                return 0  # plain operators; the others are kernels of CUDA
        if func is aten._pin_memory.default:
            return args[0]
        self._count_wait(func, args, kwargs, tensors, target)
        inner_args, inner_kwargs = tree_unflatten([_inner(leaf) for leaf in leaves], spec)
        inner_kwargs.pop("pin_memory", None)
        out = func(*inner_args, **inner_kwargs)
        if func in _TAKE_BOTH:
            goes_here = isinstance(args[0], DeviceTensor)
        else:
            goes_here = target.type == "cuda" if target else is_here
        if not goes_here:
            return out
        out = tree_map(
            lambda leaf: (
                DeviceTensor(leaf)
                if isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor)
                else leaf
            ),
            out,
        )
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _count_wait(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        target: torch.device | None,
    ) -> None:
        """Count an operation that makes the host wait, or that copies between host and device."""
        num_here = sum(isinstance(tensor, DeviceTensor) for tensor in tensors)
        if num_here and func in _WAIT:
            self.syncs[_caller()] += 1
        if func is aten._to_copy.default and target and tensors:
            is_copy = (target.type == "cuda") != bool(num_here)
        elif func is aten.copy_.default:
            is_copy = 0 < num_here < len(tensors)
        else:
            return
        if is_copy and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
            self.syncs[f"{_caller()} (copy)"] += 1


_devices: list[Device] = []


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, DeviceTensor):
        return leaf.inner
    is_here = isinstance(leaf, torch.device) and leaf.type == "cuda"
    return torch.device("cpu") if is_here else leaf


def _check_devices(func: Any, tensors: list[Tensor]) -> None:
    of_cpu = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    if func not in _TAKE_NO_NUMBER:
        of_cpu = [tensor for tensor in of_cpu if tensor.ndim]
    if of_cpu:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in of_cpu)
        raise DeviceMismatchError(
            f"{_caller()}: {func} has tensors on cuda:0 and, of shape {shapes}, on the cpu"
        )


def _caller() -> str:
    """Return the innermost line of medray, or of a library that it calls."""
    frame = sys._getframe(1)
    while frame:
        path = frame.f_code.co_filename
        name = path.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
        if name.startswith(("medray/", *_LIBRARIES)) and "utils/generic" not in name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Mode(TorchDispatchMode):
    """Takes operations whose arguments are no tensors: `torch.zeros(2, device="cuda")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _devices[-1].call(func, args, kwargs or {})


@contextmanager
def _taking_operations() -> Iterator[None]:
    """Take the operations of this thread inside a block."""
    # `torch.tensor(1.0, device="cuda")` makes a tensor of the CPU first
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


@contextmanager
def pretend(capability: tuple[int, int] = (9, 0)) -> Iterator[Device]:
    """Have a CUDA device in name inside a block, also in threads that start there."""
    device, run = Device(), threading.Thread.run

    def run_with_device(self: threading.Thread) -> None:
        with _taking_operations():
            run(self)

    with ExitStack() as stack:
        if find_spec("bitsandbytes"):
            _patch_4bit(stack)  # its import would look for more of CUDA inside
        for name, value in functions(capability).items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(threading.Thread, "run", run_with_device))
        stack.enter_context(patch.object(torch.nn.Module, "to", _move_module))
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        _devices.append(device)
        stack.callback(_devices.pop)
        stack.enter_context(_taking_operations())
        yield device


_to = torch.nn.Module.to


def _move_module(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    is_here = any(isinstance(parameter, DeviceTensor) for parameter in self.parameters())
    if device is not None and device.type == "cpu" and dtype is None and not is_here:
        return self  # to swap weights with themselves would lose what bitsandbytes stores on them
    return _to(self, *args, **kwargs)


def _patch_4bit(stack: ExitStack) -> None:
    """Let weights in 4 bits move to the device, with what bitsandbytes stores on them."""
    from bitsandbytes.nn import Params4bit

    to, swap = Params4bit.to, torch.utils.swap_tensors

    def move(self: Any, *args: Any, **kwargs: Any) -> Any:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != "cuda":
            return to(self, *args, **kwargs)
        if not self.bnb_quantized:
            to(self, "cpu")
        self.quant_state.to(device)
        return DeviceTensor(self.data.clone())

    def swap_with_state(mine: Any, other: Any) -> None:
        other.__dict__.update(
            {name: value for name, value in mine.__dict__.items() if name not in other.__dict__}
        )
        swap(mine, other)

    stack.enter_context(patch.object(Params4bit, "to", move))
    stack.enter_context(patch("torch.utils.swap_tensors", swap_with_state))
