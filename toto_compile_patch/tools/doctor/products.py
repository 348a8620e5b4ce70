"""How fast this machine multiplies matrices, in each precision that the fast path offers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from toto_compile_patch.settings import PRECISIONS

if TYPE_CHECKING:
    import torch

    from toto_compile_patch.decode.linear import Linear

# As decode/precision has them, which takes torch.
MODEL, TF32, TF32X3, BF16 = PRECISIONS

WORTH_IT = 1.2
"""Times the speed of float32's products, from which on another precision pays: all that is between
products stays in float32."""

_FEATURES, _MOST_TURNS, _FEWEST_TURNS, _SECONDS = (768, 6144), 9, 5, 0.2
_ROWS_OF_GPU, _ROWS, _FEW_ROWS = 2048, 256, 16
_AT_ONCE_ON_A_GPU = 10


@dataclass(frozen=True)
class Products:
    """What was measured on a device: float32 and another precision, in turn, several times.

    Attributes:
        device: its type.
        precision: the other one.
        rows: of the inputs, multiplied with a weight of the largest layer of Toto-Open-Base-1.0.
        gflops: of float32 and of the other, at the median.
        ratios: how many times as fast the other was: least, median and greatest, without the one
            outlier to each side.
    """

    device: str
    precision: str
    rows: int
    gflops: tuple[float, float]
    ratios: tuple[float, float, float]

    @property
    def pays(self) -> bool | None:
        """Whether it is worth it; None where one turn says this and another one that."""
        least, _, greatest = self.ratios
        if least < WORTH_IT <= greatest:
            return None
        return least >= WORTH_IT

    @property
    def sentence(self) -> str:
        """Whether it is worth it, and what was measured."""
        plain, other = self.gflops
        asked = f"precision={self.precision!r}"
        rates = f"its products run at {other:.0f} GFLOP/s, float32's at {plain:.0f}"
        if self.pays is None:
            least, _, greatest = self.ratios
            return (
                f"Whether {asked} pays on {self.device} cannot be told now: {rates}, and from "
                f"one measurement to the next they are {least:.2g} to {greatest:.2g} times as "
                "fast. Ask again when the machine is quiet."
            )
        if self.pays:
            return f"{asked} pays on {self.device}: {rates}. A whole forecast gains less."
        return (
            f"{asked} does not pay on {self.device}: {rates}, and from {WORTH_IT} times as fast on "
            "it does."
        )


def measure() -> list[Products]:
    """Measure on the CPU, and on a GPU if there is one; it takes a fraction of a second."""
    import torch

    found = [_measured(torch.device("cpu"), BF16)]
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        found += [_measured(gpu, precision) for precision in (TF32, TF32X3, BF16)]
    return found


def _measured(device: torch.device, precision: str) -> Products:
    import torch

    from toto_compile_patch.decode.precision import Precision
    from toto_compile_patch.decode.weights import WeightFormat

    seeded = torch.Generator(device).manual_seed(0)
    in_features, out_features = _FEATURES
    weight = torch.randn(out_features, in_features, generator=seeded, device=device)
    bias = torch.zeros(out_features, device=device)
    of_other = WeightFormat.of(weight, precision)
    # Without the instructions, products in 16 bits are a hundred times slower.
    rows = _ROWS if of_other.packed else _FEW_ROWS
    # A single one would be over before the GPU is at its speed.
    rows, at_once = (_ROWS_OF_GPU, _AT_ONCE_ON_A_GPU) if weight.is_cuda else (rows, 1)
    inputs = torch.randn(rows, in_features, generator=seeded, device=device)
    plain = WeightFormat.of(weight, MODEL).linear(weight, bias)
    other = of_other.linear(weight, bias)

    def product(linear: Linear, within: str) -> Callable[[], Any]:
        def multiply() -> None:
            with Precision(within).of_products(device):
                for _ in range(at_once):
                    linear.apply(inputs)

        return multiply

    with torch.no_grad():
        seconds = _in_turn(device, product(plain, MODEL), product(other, precision))
    done = 2 * rows * in_features * out_features * at_once
    first, second = (done / median(taken) / 1e9 for taken in zip(*seconds, strict=True))
    ratios = sorted(one / two for one, two in seconds)[1:-1]
    spread = (ratios[0], median(ratios), ratios[-1])
    return Products(device.type, precision, rows, (first, second), spread)


def _in_turn(device: torch.device, *works: Callable[[], Any]) -> list[tuple[float, ...]]:
    """Seconds of each, several times in turn, after a first time that does not count."""
    for work in works:
        _timed(work, device)
    turns: list[tuple[float, ...]] = []
    start = time.perf_counter()
    while len(turns) < _MOST_TURNS and (
        len(turns) < _FEWEST_TURNS or time.perf_counter() - start < _SECONDS
    ):
        turns.append(tuple(_timed(work, device) for work in works))
    return turns


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    from toto_compile_patch.tools.machine import wait_for

    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start
