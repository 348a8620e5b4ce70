"""Kernels for CUDA devices, in Triton: what lies between the products of a forecast, in one pass
each where torch's own operators take up to forty.

A function here launches what the operator of its name computes (see ``fused``); the operator's
formula, beside the code that uses it, says what that is. In float32, but where sums would lose too
much. What varies from forecast to forecast is not compiled in: ``do_not_specialize``.
"""

from toto_compile_patch.decode.gpu_kernels.attention import attend_of_samples, attend_to_few
from toto_compile_patch.decode.gpu_kernels.layers import (
    by_heads,
    gated,
    norm,
    rotary_tables,
    sum_and_norm,
)
from toto_compile_patch.decode.gpu_kernels.products import (
    linear_in_three_passes,
    linear_of_few_rows,
)
from toto_compile_patch.decode.gpu_kernels.sampling import draw
from toto_compile_patch.decode.gpu_kernels.scaling import scale_context, scale_patch

__all__ = [
    "attend_of_samples",
    "attend_to_few",
    "by_heads",
    "draw",
    "gated",
    "linear_in_three_passes",
    "linear_of_few_rows",
    "norm",
    "rotary_tables",
    "scale_context",
    "scale_patch",
    "sum_and_norm",
]
