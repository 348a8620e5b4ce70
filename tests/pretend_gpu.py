"""A GPU that is none: tensors that say that they are on one, and lie on the host.

Code that asks a tensor where it is goes the way that it goes on a GPU, with numbers or, where the
tensors are torch's meta tensors, with shapes alone. What a GPU would refuse is refused here: a
tensor of the host's as an operand. What makes the host wait for a GPU is written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from toto_compile_patch.decode import attention, fused, random_numbers
from toto_compile_patch.decode.request import Request

DEVICE = torch.device("cuda", 0)
CAPABILITY = (9, 0)
HOST, NOWHERE = "cpu", "meta"

QUESTIONS = {
    "__array__",
    "__bool__",
    "__contains__",
    "__float__",
    "__index__",
    "__int__",
    "cpu",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "numpy",
    "tolist",
    "unique",
}
"""Functions of torch's whose answer depends on what a GPU has computed: the host waits for it."""

LOOKS = {
    "__get__",
    "__len__",
    "data_ptr",
    "dim",
    "element_size",
    "is_contiguous",
    "is_floating_point",
    "is_inference",
    "numel",
    "size",
    "storage_offset",
    "stride",
    "untyped_storage",
}
"""Functions that tell what the host knows of a tensor."""

COPIES = {"copy_", "to", "cuda"}
"""Functions that take a tensor of the host's to a GPU."""

MAKES_OF_NUMBERS = {"as_tensor", "asarray", "new_tensor", "tensor"}
"""Functions that take numbers of the host's to a GPU, by a copy, and not as a kernel's argument."""


class NotOnAGpuError(Exception):
    """A GPU, or the capture of a CUDA graph, would refuse this."""


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = DEVICE
    is_cuda = True
    is_cpu = False
    is_meta = False


class HostGenerator(torch.Generator):
    """Draws on the host, whatever device it is asked for."""

    def __new__(cls, device: Any = HOST) -> HostGenerator:
        return super().__new__(cls)


class PretendGpu(TorchFunctionMode):
    """Lets code in a ``with`` block find a GPU.

    Args:
        where: the tensors really are, HOST or NOWHERE.
        answers: to the questions that are asked of tensors that are nowhere, in their order.
        kernels: whether it has kernels of our own.

    Attributes:
        asked: questions, by name, and what was answered.
        capturing: whether a CUDA graph is being captured: questions and copies from the host raise.
    """

    def __init__(
        self, where: str = HOST, answers: Iterable[Any] = (), *, kernels: bool = True
    ) -> None:
        super().__init__()
        self.asked: list[tuple[str, Any]] = []
        self.capturing = False
        self._where = where
        self._kernels = kernels
        self._answers = iter(answers)
        self._patches = ExitStack()

    def __enter__(self) -> PretendGpu:
        stream = SimpleNamespace(synchronize=lambda: None)
        self._patches.enter_context(patch.object(torch, "Generator", HostGenerator))
        self._patches.enter_context(patch.object(torch.cuda, "current_stream", lambda _: stream))
        self._patches.enter_context(
            patch.object(torch.cuda, "get_device_capability", lambda _: CAPABILITY)
        )
        self._patches.enter_context(patch.object(fused, "are_there", lambda _: self._kernels))
        # The formulas take heads of any size.
        self._patches.enter_context(patch.object(attention, "LEAST_SIDE", 1))
        self._patches.enter_context(
            patch.object(random_numbers, "_next_seed", lambda _: _next_on_the_host())
        )
        self._patches.enter_context(
            patch.object(random_numbers, "_move_on", lambda _: _drawn_on_the_host(None))
        )
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name in LOOKS:
            return func(*args, **kwargs)
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], self._known(args[1]), *args[2:])
        parts = list(_parts((args, kwargs)))
        on_gpu = any(isinstance(part, OnGpu) for part in parts)
        on_host = any(isinstance(part, torch.Tensor) and _is_hosts(part) for part in parts)
        to_gpu = any(_is_gpu(part) for part in parts)
        if on_gpu and on_host and name not in COPIES:
            raise NotOnAGpuError(f"{name}: operands on the host and on the GPU")
        copied = on_host or name in MAKES_OF_NUMBERS
        if self.capturing and copied and (on_gpu or to_gpu):
            raise NotOnAGpuError(f"{name}: a copy from the host while a graph is captured")
        if on_gpu and (_is_question(name, args) or any(_is_host(part) for part in parts)):
            return self._ask(name, func, args, kwargs)
        if to_gpu:
            args, kwargs = tree_map(self._really, (args, kwargs))
        if self._where == NOWHERE:
            return self._shapes_alone(func, args, kwargs, on_gpu or to_gpu)
        if on_gpu and getattr(func, "_qualified_op_name", "").startswith(fused.NAMESPACE):
            # Their formulas are for tensors as they are.
            args, kwargs = tree_map(_as_torch_has_it, (args, kwargs))
            return tree_map(_as_on_gpu, func(*args, **kwargs))
        result = func(*args, **kwargs)
        if to_gpu and isinstance(result, torch.Tensor):
            result = result.as_subclass(OnGpu)
        return result

    def tensor(self, values: torch.Tensor) -> OnGpu:
        """A copy of a tensor, on the GPU."""
        return values.detach().to(self._where, copy=True).as_subclass(OnGpu)

    def model(self, model: Any) -> Any:
        """Move a model to the GPU."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(self.tensor(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return model

    def request(self, request: Request) -> Request:
        """A copy of a request, on the GPU."""
        own: dict[str, Any] = {k: self.tensor(part) for k, part in request.tensors().items()}
        return replace(request, **own)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """As while a CUDA graph is captured."""
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def _really(self, part: Any) -> Any:
        return torch.device(self._where) if _is_gpu(part) else part

    def _shapes_alone(self, func: Any, args: Any, kwargs: Any, on_gpu: bool) -> Any:
        # Some of torch's operators for meta tensors are in Python, and ask for the device.
        args, kwargs = tree_map(_as_torch_has_it, (args, kwargs))
        if on_gpu and func in ON_META:
            func = ON_META[func]
        result = func(*args, **kwargs)
        return tree_map(_as_on_gpu, result) if on_gpu else result

    def _known(self, index: Any) -> Any:
        """An index in which the host knows all positions: it asks the GPU for those that it has."""
        if isinstance(index, tuple):
            return tuple(self._known(part) for part in index)
        if isinstance(index, slice):
            bounds = (index.start, index.stop, index.step)
            return slice(*(self._known(part) for part in bounds))
        is_number = isinstance(index, OnGpu) and index.ndim == 0 and index.dtype is not torch.bool
        return self._ask("__index__", torch.Tensor.item, (index,), {}) if is_number else index

    def _ask(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if self.capturing:
            raise NotOnAGpuError(f"{name}: a question while a graph is captured")
        if self._where == HOST:
            answer = _as_torch_has_it(func(*args, **kwargs))
        else:
            try:
                answer = next(self._answers)
            except StopIteration:
                raise NotOnAGpuError(f"{name}: nobody knows") from None
        self.asked.append((name, answer))
        return answer


def _drawn_on_the_host(generator: torch.Generator | None) -> int:
    """What begins a forecast's random numbers on a CPU."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def _next_on_the_host() -> int:
    """The same, and the process's generator stays where it is."""
    return _drawn_on_the_host(torch.Generator().set_state(torch.get_rng_state()))


def _is_hosts(tensor: torch.Tensor) -> bool:
    """Whether it is the host's and no number, which any GPU takes as an operand."""
    return not isinstance(tensor, OnGpu) and tensor.ndim > 0


def _is_gpu(part: Any) -> bool:
    return isinstance(part, (torch.device, str)) and str(part).startswith("cuda")


def _is_host(part: Any) -> bool:
    return isinstance(part, (torch.device, str)) and str(part) == "cpu"


def _is_question(name: str, args: Any) -> bool:
    if name not in ("__getitem__", "__setitem__"):
        return name in QUESTIONS
    return any(isinstance(p, torch.Tensor) and p.dtype is torch.bool for p in _parts(args[1]))


def _parts(parts: Any) -> Iterator[Any]:
    """What is in tuples, lists, dictionaries and slices."""
    if isinstance(parts, (tuple, list)):
        for part in parts:
            yield from _parts(part)
    elif isinstance(parts, dict):
        yield from _parts(list(parts.values()))
    elif isinstance(parts, slice):
        yield from _parts((parts.start, parts.stop, parts.step))
    else:
        yield parts


def _as_torch_has_it(part: Any) -> Any:
    return part.as_subclass(torch.Tensor) if isinstance(part, OnGpu) else part


def _as_on_gpu(part: Any) -> Any:
    return part.as_subclass(OnGpu) if isinstance(part, torch.Tensor) else part


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """By what torch takes for float32 on CUDA."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


def _norm(
    rows: torch.Tensor, shape: Any, weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """One kernel that reads and writes as much."""
    return rows.clone() if weight is None else rows * weight


def _gamma(alpha: torch.Tensor, generator: Any = None) -> torch.Tensor:
    """Another operator of one kernel: torch 2.7 knows no shape of that one."""
    return alpha.sqrt()


ON_META: dict[Any, Any] = {
    scaled_dot_product_attention: _attention,
    torch._standard_gamma: _gamma,
}
"""Functions that torch composes of other operators on meta tensors than on CUDA."""

if hasattr(torch.ops.aten, "_fused_rms_norm"):
    ON_META |= {rms_norm: _norm, torch.rms_norm: _norm}
