"""``positional_embedding``: what reads the key/value cache runs outside compiled code.

The cache's length changes at every decode step, and each attention layer has its own index into
it. Compiled code that reads either is compiled again for every new value. The break must come
before the cache is read, and above it no frame may see a number that came from it:

- ``positional_embedding`` and the attention around it run uncompiled when there is a cache. That
  costs little: matrix products, which a compiler does not improve, and the rotary embedding.
- A layer is compiled on both sides of its attention: the norm before it, and what follows it,
  in frames that see neither the cache nor the layer's index or kind, and so serve all layers.
- ``TotoBackbone.backbone`` and ``Transformer.forward`` ask the cache for its length, so their own
  frames are not compiled; the scaler, the patch embedding and the layers that they call are.
- ``Transformer._get_mask`` is then called on its own: a few views, not worth a graph.

Without a cache nothing changes: upstream's code is compiled whole, as it was before.
"""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

import torch

from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.tracing import (
    inside_compiled_call,
    run_uncompiled,
    skip_frame,
    skip_own_frame,
    traced_or_uncompiled,
    with_cache,
)
from toto_compile_patch.upstream import TotoCode


@cache
def sites(code: TotoCode) -> tuple[AttributeSite, ...]:
    attention, transformer = code.BaseMultiheadAttention, code.Transformer
    return (
        AttributeSite(
            attention,
            "positional_embedding",
            with_cache(3, run_uncompiled),
        ),
        AttributeSite(
            attention,
            "forward",
            with_cache(3, run_uncompiled),
            needs=((attention, "run_attention"),),
        ),
        AttributeSite(code.TransformerLayer, "forward", with_cache(3, _compile_around_attention)),
        AttributeSite(code.TotoBackbone, "backbone", with_cache(3, skip_own_frame)),
        AttributeSite(transformer, "forward", with_cache(2, _skip_own_frame_of_stack)),
        AttributeSite(transformer, "_get_mask", traced_or_uncompiled),
    )


def _skip_own_frame_of_stack(original: Any) -> Any:
    """Skip the frame of ``Transformer.forward``, and give its first layer a tensor of its own.

    The embeddings (``batch variate seq_len embed_dim``) are a view of a matrix product. Dynamo
    guards on the base of a view, so the first layer would be compiled apart from the others.
    """
    uncompiled_frame = skip_own_frame(original)

    @skip_frame
    @wraps(original)
    def forward(self: Any, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if inputs._is_view() and inside_compiled_call():
            inputs = inputs.clone()
        return uncompiled_frame(self, inputs, *args, **kwargs)

    return forward


def _compile_around_attention(_: Any) -> Any:
    """Replace ``TransformerLayer.forward``: what surrounds its attention is compiled by itself."""

    @skip_frame
    def forward(
        self: Any,
        layer_idx: int,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        kv_cache: Any = None,
    ) -> torch.Tensor:
        attended = self.attention(layer_idx, self.norm1(inputs), attention_mask, kv_cache)
        return _after_attention(inputs, attended, self.norm2, self.mlp)

    return forward


def _after_attention(
    inputs: torch.Tensor, attended: torch.Tensor, norm: Any, mlp: Any
) -> torch.Tensor:
    """Both residual sums of a pre-norm layer, ``batch variate seq_len embed_dim``."""
    hidden = inputs + attended.contiguous()
    result: torch.Tensor = hidden + mlp(norm(hidden))
    return result
