"""A double of CUDA for machines without a card: tensors that say `cuda:0` and compute on the CPU.

    with cuda_double() as double:
        sam.to("cuda")
        with double.counting() as counts:
            propose(sam, image, settings)
    print(counts.num_waits, counts.waits.most_common(5))

It refuses what CUDA refuses (tensors of two devices in one operation, `numpy()` of a tensor of the device, more memory
than there is) and counts by line of code: launches, waits (the host stands until the device is done), copies, and the
bytes that kernels read and write. It shows neither times nor the rounding of CUDA's kernels.

What is counted as a wait is what `torch.cuda.set_sync_debug_mode` warns of: copies that are not `non_blocking`, sizes
that depend on values (`nonzero`, boolean indices), numbers that Python reads.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
GIB = 1 << 30
# Operations that move no bytes; `empty` and its kin are no launches either.
_VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "transpose",
    "permute",
    "expand",
    "select",
    "slice",
    "unsqueeze",
    "squeeze",
}
_VIEWS |= {"detach", "alias", "split", "split_with_sizes", "unbind", "t", "as_strided", "unflatten", "chunk", "view_as"}
_VIEWS |= {"lift_fresh", "_reshape_alias", "diagonal", "unfold", "is_same_size", "_local_scalar_dense", "is_pinned"}
_NEW = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_", "set_"}
_FILLED = {"zeros", "ones", "full", "empty"}
_OF_VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
_OF_VALUES |= {"bincount", "nms"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Whose first argument is copied into the result before the product is added to it; `addmm` has a fused bias.
_COPIES_FIRST = {"baddbmm", "addbmm"}
# One kernel, where torch would fall back to several on a CPU.
_FUSED = {"scaled_dot_product_attention"}


class DoubleError(RuntimeError):
    """What a real device would have refused."""


@dataclass
class Counts:
    """What was asked of the device, by line of code (`file.py:12`)."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    bytes_moved: Counter[str] = field(default_factory=Counter)
    copied_bytes: int = 0

    @property
    def num_launches(self) -> int:
        """Kernels started."""
        return self.launches.total()

    @property
    def num_waits(self) -> int:
        """Times that the host stood until the device was done."""
        return self.waits.total()

    @property
    def num_copies(self) -> int:
        """Copies between host and device, either way."""
        return self.copies.total()

    @property
    def num_bytes(self) -> int:
        """Bytes that kernels read and wrote."""
        return self.bytes_moved.total()


class DoubleTensor(torch.Tensor):
    """A tensor that says that it is on the device; `elem` has its numbers."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor, requires_grad: bool = False) -> DoubleTensor:
        """Wraps a tensor of the CPU."""
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset(), "layout": elem.layout}
        tensor = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, elem.size(), dtype=elem.dtype, device=CUDA, requires_grad=requires_grad, **layout
        )
        tensor.elem = elem
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of a tensor that is met where the double is not switched on."""
        raise DoubleError(f"{func} of a tensor of the device outside of cuda_double()")

    def tolist(self) -> Any:
        """A copy to the host."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *_: Any, **options: Any) -> torch.Tensor:
        """Made on the host, and copied."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def numpy(self, *, force: bool = False) -> Any:
        """As CUDA's tensors do."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __getitem__(self, index: Any) -> Any:
        """Lists among the indices are copied to the device, as CUDA's are."""
        return torch.Tensor.__getitem__(self, _with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        """See `__getitem__`."""
        torch.Tensor.__setitem__(self, _with_tensors(index), value)

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"DoubleTensor({self.elem!r})"


class CudaDouble(TorchDispatchMode):
    """The device: runs every operation on the CPU, and counts.

    Attributes:
        counts: of all that ran since they were last replaced.
        memory_bytes: allocations beyond it are refused with `torch.OutOfMemoryError`.
    """

    def __init__(self, memory_bytes: int = 80 * GIB) -> None:
        super().__init__()
        self.counts, self.memory_bytes = Counts(), memory_bytes
        self._storages: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counts]:
        """Counts of what runs inside alone."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    def allocated_bytes(self) -> int:
        """Bytes of all tensors of the device that are alive."""
        storages = {tensor.elem.untyped_storage()._cdata: tensor for tensor in list(self._storages.values())}
        return sum(tensor.elem.untyped_storage().nbytes() for tensor in storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation while the double is switched on."""
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = [tensor for tensor in tensors if isinstance(tensor, DoubleTensor)]
        on_host = [tensor for tensor in tensors if not isinstance(tensor, DoubleTensor)]
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if wanted is not None and wanted.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        to_device = wanted.type == "cuda" if wanted is not None else bool(on_device)
        kwargs.pop("pin_memory", None)
        if not on_device and not to_device:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name not in _FUSED and _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        site = _site()
        self._refuse(name, args, on_device, on_host, site)
        self._count_waits(name, args, kwargs, on_device, on_host, site)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if to_device and name in _FILLED:
            self._reserve(torch.Size(args[0]).numel() * (kwargs.get("dtype") or torch.get_default_dtype()).itemsize)
        kwargs.pop("non_blocking", None) if name == "_to_copy" else None
        unwrap = lambda leaf: leaf.elem if isinstance(leaf, DoubleTensor) else leaf  # noqa: E731
        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        known = {id(tensor.elem): tensor for tensor in on_device} | {id(tensor): tensor for tensor in on_host}

        def wrap(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or not to_device or id(leaf) in known:
                return known.get(id(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf
            return self._wrapped(leaf, name not in _VIEWS)

        wrapped = tree_map(wrap, result)
        if name not in _VIEWS | _NEW:
            written = sum(_num_bytes(leaf) for leaf in tree_leaves(wrapped) if isinstance(leaf, DoubleTensor))
            self.counts.launches[site] += 1
            again = 2 * written if name in _COPIES_FIRST else 0
            self.counts.bytes_moved[site] += written + again + sum(map(_num_bytes, on_device))
        return wrapped

    def _wrapped(self, elem: torch.Tensor, is_new: bool) -> DoubleTensor:
        if is_new:
            self._reserve(_num_bytes(elem))
        # A view of a parameter may not be an inference tensor, and nothing asks for one.
        with torch.inference_mode(False):
            tensor = DoubleTensor(elem)
        self._storages[id(tensor)] = tensor
        return tensor

    def _reserve(self, num_bytes: int) -> None:
        if num_bytes > (1 << 20) and self.allocated_bytes() + num_bytes > self.memory_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes / GIB:.2f} GiB (double).")

    def _refuse(self, name: str, args: Any, on_device: list, on_host: list, site: str) -> None:
        if not on_device or name in ("copy_", "_to_copy"):
            return
        if name in _INDEXING:
            if not isinstance(args[0], DoubleTensor):
                raise DoubleError(f"{site}: {name} of a tensor of the CPU by indices of the device")
            values = args[2] if len(args) > 2 else None
            if isinstance(values, torch.Tensor) and not isinstance(values, DoubleTensor) and values.dim() > 0:
                raise DoubleError(f"{site}: {name} puts values of the CPU into a tensor of the device")
        elif mixed := [tuple(tensor.shape) for tensor in on_host if tensor.dim() > 0]:
            raise DoubleError(f"{site}: {name} of tensors of two devices; on the CPU are {mixed}")

    def _count_waits(self, name: str, args: Any, kwargs: dict, on_device: list, on_host: list, site: str) -> None:
        counts, copied = self.counts, None
        if name == "_to_copy" and (
            isinstance(args[0], DoubleTensor) != (torch.device(kwargs["device"]).type == "cuda")
            if kwargs.get("device") is not None
            else False
        ):
            copied = args[0]
        elif name == "copy_" and on_host and on_device and args[1].dim() + args[0].dim() > 0:
            copied = args[1]
        elif name in _INDEXING:
            indices = [index for index in args[1] if index is not None]
            copied = next((index for index in indices if not isinstance(index, DoubleTensor)), None)
            # A boolean index that is filled with one number of the host becomes `masked_fill`.
            fills = len(args) > 2 and not isinstance(args[2], DoubleTensor)
            if any(index.dtype == torch.bool for index in indices) and not fills:
                counts.waits[site] += 1
        elif name in _OF_VALUES:
            counts.waits[site] += 1
        if copied is not None:
            counts.copies[site] += 1
            counts.copied_bytes += _num_bytes(copied)
            is_patient = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            counts.waits[site] += not is_patient


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _with_tensors(index: Any) -> Any:
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.long)
    return tuple(map(_with_tensors, index)) if isinstance(index, tuple) else index


def _num_bytes(tensor: torch.Tensor) -> int:
    """Of what a kernel reads: an expanded dimension is read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    number = 1
    for size, stride in sizes:
        number *= size if stride != 0 or size == 0 else 1
    return number * tensor.element_size()


def _site() -> str:
    """The innermost line that is neither of torch nor of this file."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not any(part in name for part in ("/torch/", "jaxtyping", "beartype", "<")):
            return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def _on_device_first(function: Any) -> Any:
    """`torch.tensor` and `as_tensor` make their numbers on the host, wherever these go."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, DoubleTensor):
            return data if device is None else data.to(device)
        on_host = function(data, *args, **kwargs)
        return on_host if device is None else on_host.to(device)

    return made


@contextlib.contextmanager
def cuda_double(memory_bytes: int = 80 * GIB) -> Iterator[CudaDouble]:
    """Pretends, until its end, that there is one CUDA device of so much memory."""
    torch._C._ensureCUDADeviceGuardSet()  # pyright: ignore[reportAttributeAccessIssue]
    double = CudaDouble(memory_bytes)
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "mem_get_info": lambda *_: (double.memory_bytes - double.allocated_bytes(), double.memory_bytes),
        "memory_allocated": lambda *_: double.allocated_bytes(),
        "max_memory_allocated": lambda *_: double.allocated_bytes(),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, _on_device_first(getattr(torch, name))))
        stack.enter_context(
            mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False)
        )
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self))
        stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
        torch.backends.cudnn.enabled = False
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(double)
        yield double
