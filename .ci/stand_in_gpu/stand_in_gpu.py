"""Computes what a stand-in for a GPU leaves out, in the memory that torch's CUDA code gives out.

    bash .ci/stand_in_gpu/run python -m pytest tests/test_gpu.py

Each operator on a GPU's tensors goes through torch's own code for CUDA, which gives out memory,
captures, moves its random generators on, and launches kernels, in vain. Then the same operator
computes on the host, in the same memory. During a capture it is written down instead, for the
graph's replays. An operator of our own is computed by its formula, once its kernel was launched.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

PRELOADED = "LD_PRELOAD"
Listener = ctypes.CFUNCTYPE(None, ctypes.c_ulong)

ONLY_MEMORY = {
    "_local_scalar_dense",
    "_pin_memory",
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "is_pinned",
    "item",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "record_stream",
    "resize_",
    "set_",
}
"""Operators that launch no kernel."""

ASK_THE_HOST = {"_unique2", "masked_select", "nonzero", "unique_consecutive", "unique_dim"}
"""Operators whose result is as large as a kernel finds."""

RANDOM = {
    "_standard_gamma",
    "bernoulli",
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "multinomial",
    "normal",
    "normal_",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randn_like",
    "random_",
    "randperm",
    "uniform_",
}

PRODUCTS = {"addmm", "baddbmm", "bmm", "mm"}

ATTENTIONS = {
    "_efficient_attention_forward",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
}

TF32_LEFT_OUT = 13
"""Bits of a float32's fraction that TF32 has not."""


@dataclass(frozen=True)
class Step:
    """An operator of a capture.

    Attributes:
        compute: it, on the host.
        results: where its results go, by their number.
        offset: of its random numbers, from the start of the capture; None: it draws none.
    """

    compute: Callable[[], Any]
    results: list[tuple[int, torch.Tensor]]
    offset: int | None


@dataclass
class Tape:
    """What was captured.

    Attributes:
        steps: operators, in order.
        drawn: by how much they move the generator on.
        generator: of their random numbers.
    """

    steps: list[Step] = field(default_factory=list)
    drawn: int = 0
    generator: torch.Generator | None = None


_tapes: dict[int, Tape] = {}
_moves_on: dict[Any, int] = {}
"""By how much a random operator moves a generator on, as seen outside of captures."""


class OnTheHost(TorchDispatchMode):  # type: ignore[misc]
    """Computes on the host what is asked of a GPU in this thread."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        devices = [d for d in map(device_of, given) if d is not None and d.type == "cuda"]
        if not devices:
            return operator(*args, **kwargs)
        name = operator._schema.name.split("::")[1]
        capture = capture_on(devices[0])
        if not capture and asks_the_host(name, given):
            torch.cuda.synchronize()
            found = operator(*tree_map(on_host, args), **tree_map(on_host, kwargs))
            return tree_map(lambda part: part.to(devices[0]), found)
        generator = generator_of(given, devices[0]) if name in RANDOM else None
        before = None if generator is None or capture else generator.get_offset()
        made = operator(*args, **kwargs)
        if name in ONLY_MEMORY or operator.is_view:
            return made
        compute = computation(operator, name, args, kwargs)
        results = tree_leaves(made)
        known = {id(part) for part in given}
        new = [
            (number, on_host(part))
            for number, part in enumerate(results)
            if isinstance(part, torch.Tensor) and id(part) not in known
        ]
        drawn = operator, tuple(getattr(part, "shape", None) for part in results)
        if capture:
            tape = _tapes.setdefault(capture, Tape())
            tape.steps.append(Step(compute, new, None if generator is None else tape.drawn))
            if generator is not None:
                tape.generator = generator
                tape.drawn += _moves_on[drawn]
            return made
        if generator is not None and before is not None:
            _moves_on[drawn] = generator.get_offset() - before
            with seeded(generator, before):
                computed = compute()
        else:
            computed = compute()
        put(computed, new)
        # A number was read where nothing has been computed.
        return computed if isinstance(made, (bool, int, float, complex)) else made


def capture_on(device: torch.device) -> int:
    """The number of the capture that is open on a GPU's current stream; 0: none is."""
    return int(runtime().stand_in_capture(torch.cuda.current_stream(device).cuda_stream))


def device_of(part: Any) -> torch.device | None:
    """Where an argument is, or says that results shall be."""
    if isinstance(part, torch.device):
        return part
    return part.device if isinstance(part, (torch.Tensor, torch.Generator)) else None


def on_host(part: Any) -> Any:
    """An argument as the host computes with it: a tensor over the same memory."""
    if isinstance(part, torch.device):
        return torch.device("cpu")
    if isinstance(part, torch.Generator):
        return None
    if not isinstance(part, torch.Tensor) or not part.is_cuda:
        return part
    if not part.numel():
        return torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cpu")
    last = sum((size - 1) * step for size, step in zip(part.shape, part.stride(), strict=True))
    memory = (ctypes.c_char * ((last + 1) * part.element_size())).from_address(part.data_ptr())
    bits = torch.frombuffer(memory, dtype=torch.uint8)
    return bits.view(part.dtype).as_strided(part.shape, part.stride())


def asks_the_host(name: str, given: list[Any]) -> bool:
    """Whether the host must know what a kernel finds before it can go on."""
    masks = (torch.bool, torch.uint8)
    by_mask = any(isinstance(part, torch.Tensor) and part.dtype in masks for part in given[1:])
    return name in ASK_THE_HOST or (name == "index" and by_mask)


def computation(
    operator: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any]:
    """What computes an operator on the host."""
    args, kwargs = tree_map(on_host, args), tree_map(on_host, kwargs)
    if name in ATTENTIONS:
        names = [argument.name for argument in operator._schema.arguments]
        return lambda: attention(name, dict(zip(names, args, strict=False)) | kwargs)
    if name in PRODUCTS and multiplies_in_tf32():
        return lambda: operator(*tree_map(in_tf32, args), **kwargs)
    return lambda: operator(*args, **kwargs)


def multiplies_in_tf32() -> bool:
    """What torch is told of float32 products."""
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):
        return bool(settings.fp32_precision == "tf32")
    return bool(settings.allow_tf32)


def in_tf32(part: Any) -> Any:
    """A factor, rounded."""
    if not isinstance(part, torch.Tensor) or part.dtype is not torch.float32:
        return part
    bits = part.contiguous().view(torch.int32) + (1 << (TF32_LEFT_OUT - 1))
    return (bits >> TF32_LEFT_OUT << TF32_LEFT_OUT).view(torch.float32)


def attention(name: str, given: dict[str, Any]) -> tuple[torch.Tensor]:
    """By its formula; kernels compute more, which only gradients need."""
    forward = name == "_efficient_attention_forward"
    query, key, value = (given[part] for part in ("query", "key", "value"))
    if forward:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    causal = bool(given.get("custom_mask_type") if forward else given.get("is_causal"))
    bias = given.get("bias" if forward else "attn_bias")
    formula = torch.ops.aten._scaled_dot_product_attention_math
    found = formula(query, key, value, bias, 0.0, causal, None, scale=given.get("scale"))[0]
    return (found.transpose(1, 2) if forward else found,)


def generator_of(given: list[Any], device: torch.device) -> torch.Generator:
    """What an operator draws from."""
    for part in given:
        if isinstance(part, torch.Generator):
            return part
    return torch.cuda.default_generators[device.index or 0]


@contextmanager
def seeded(generator: torch.Generator, offset: int) -> Any:
    """Draw on the host what follows from the seed and offset of a GPU's generator."""
    text = f"{generator.initial_seed()} {offset}".encode()
    before = torch.random.get_rng_state()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)


def put(computed: Any, results: list[tuple[int, torch.Tensor]]) -> None:
    """Write results where torch has given memory for them."""
    parts = tree_leaves(computed)
    for number, result in results:
        if number < len(parts):
            result.copy_(parts[number])


def replay(capture: int) -> None:
    """A graph is replayed: compute what was written down."""
    tape = _tapes.get(capture, Tape())
    # A GPU is not interrupted.
    tracing = sys.gettrace()
    sys.settrace(None)
    try:
        with _disable_current_modes(), torch.inference_mode():
            for step in tape.steps:
                if tape.generator is None or step.offset is None:
                    put(step.compute(), step.results)
                    continue
                # Torch has moved the generator on already.
                offset = tape.generator.get_offset() - tape.drawn + step.offset
                with seeded(tape.generator, offset):
                    put(step.compute(), step.results)
    except BaseException:
        # No error can go through CUDA's code.
        traceback.print_exc()
        os._exit(70)
    finally:
        sys.settrace(tracing)


def forget(capture: int) -> None:
    """A graph is freed."""
    _tapes.pop(capture, None)


@cache
def runtime() -> ctypes.CDLL:
    """What stands in for CUDA's runtime."""
    library = ctypes.CDLL(os.environ[PRELOADED].split(":")[0])
    library.stand_in_capture.restype = ctypes.c_ulong
    library.stand_in_capture.argtypes = [ctypes.c_void_p]
    return library


def put_in_force() -> None:
    """Compute on the host from now on, in this thread and all that it starts."""
    listeners = Listener(replay), Listener(forget)
    runtime().stand_in_listen(*listeners)
    of_a_thread: Any = OnTheHost
    mode = of_a_thread()
    mode.__enter__()
    # Nobody else keeps these. Graphs may be freed when Python is no more.
    atexit.register(lambda *kept: runtime().stand_in_listen(None, None), mode, listeners)
    run, show = threading.Thread.run, torch.Tensor.__repr__

    def run_on_the_host(self: threading.Thread) -> None:
        with of_a_thread():
            run(self)

    def show_from_the_host(self: torch.Tensor, **options: Any) -> Any:
        return show(on_host(self.detach()), **options)  # type: ignore[no-untyped-call]

    replaced: tuple[tuple[Any, str, Any], ...] = (
        (threading.Thread, "run", run_on_the_host),
        (torch.Tensor, "__repr__", show_from_the_host),
    )
    for owner, name, function in replaced:
        setattr(owner, name, function)


def tell_the_package() -> None:
    """Our mode is none of the user's, and kernels would seem to compute wrong numbers."""
    from toto_compile_patch.decode import fused, weights

    weights._modes_on_the_stack = lambda: 0
    fused._found_out = lambda device: ""


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    if "libcudart" not in os.environ.get(PRELOADED, ""):
        sys.exit("Run this by .ci/stand_in_gpu/run.")
    put_in_force()
    tell_the_package()
