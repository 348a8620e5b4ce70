"""Attention over time and over variates.

Queries, keys and values come as rows in which the features of a head lie side by side, as ``wO``
takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from toto_compile_patch.decode import fused
from toto_compile_patch.decode.precision import in_type, without_autocast
from toto_compile_patch.decode.row_layout import Padding, RowLayout
from toto_compile_patch.private_names import LOG_SUMS, private, why_without

_attend_with_log_sums = private("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu")

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Heads:
    """Converts between rows, ``row embed_dim``, and separate heads, ``batch variate head n
    head_dim``.

    Attributes:
        layout: of the rows.
        num_heads: heads.
    """

    layout: RowLayout
    num_heads: int

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``batch variate head n head_dim``."""
        return self.side_by_side(rows).transpose(2, 3)

    def side_by_side(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim`` to ``batch variate n head head_dim``, a view."""
        return self.layout.unflatten(rows, self.num_heads, -1)

    def of_series(self, rows: torch.Tensor) -> torch.Tensor:
        """``row embed_dim``, one for each series and perhaps some to fill up, to ``series head 1
        head_dim``, a view."""
        return self.layout.real(rows).view(self.layout.series, self.num_heads, 1, -1)

    def join(self, heads: torch.Tensor) -> torch.Tensor:
        """``batch variate head n head_dim`` to ``row embed_dim``, as ``wO`` takes it."""
        return self.layout.flatten(heads.transpose(2, 3).flatten(-2))


def kept_heads(
    heads: Heads, keys: torch.Tensor, values: torch.Tensor, *, kept: bool
) -> KeysAndValues:
    """Keys and values of a context's rows, of one type; dense if they are kept in its cache."""
    keys, values = heads.split(keys), heads.split(values)
    values = in_type(values, keys.dtype)
    return (keys.contiguous(), values.contiguous()) if kept else (keys, values)


@dataclass(frozen=True)
class CausalAttention:
    """Attention over time within a context.

    Attributes:
        heads: of the rows, whose ``n`` are the positions.
        cache: where to put keys and values, ``batch variate head seq_len head_dim``; None: nothing
            will read them again.
        idx: index of the layer, under which ``cache`` takes them.
    """

    heads: Heads
    cache: dict[int, KeysAndValues] | None
    idx: int

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        dtype = values.dtype
        heads = kept_heads(self.heads, keys, values, kept=self.cache is not None)
        if self.cache is not None:
            self.cache[self.idx] = heads
        parts = (in_type(part, dtype) for part in (self.heads.split(queries), *heads))
        attended = attend_causally(*parts)
        return self.heads.join(attended)


@dataclass(frozen=True)
class LastPositionAttention:
    """Attention of a context's last position, whose keys and values are cached already.

    Attributes:
        heads: of the rows; ``n`` is 1.
        cache: keys and values of all positions, ``batch variate head seq_len head_dim``.
    """

    heads: Heads
    cache: KeysAndValues

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        parts = (self.heads.split(queries), *self.cache)
        attended = attend_causally(*(in_type(part, values.dtype) for part in parts))
        return self.heads.join(attended)


@dataclass(frozen=True)
class _AttentionOfSamples:
    """Decode-step attention where a series has several samples.

    All of them read one copy of the context's keys and values, and each those of its own patches.
    Takes and returns ``row embed_dim``.

    Attributes:
        heads: of the rows, whose ``n`` are the samples.
        context: keys and values, ``batch variate head context_len head_dim``.
        suffix: keys and values of the samples' own patches, to which this one's are added.
        step: patches that the suffix holds already.
    """

    heads: Heads
    context: KeysAndValues
    suffix: KeysAndValues
    step: int


class SharedContextAttention(_AttentionOfSamples):
    """The scores of context and own patches side by side: ``batch variate head samples
    (context_len + step + 1)``.

    The suffix is ``batch variate head samples max_patches head_dim``.
    """

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        with without_autocast(queries.device):
            parts = (queries, keys, values, *self.context, *self.suffix)
            if has_kernel(*parts):
                attended: torch.Tensor = attend_of_samples(*parts, self.step)
                return attended
            return _attend_of_samples(*parts, self.step)


def _attend_of_samples(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    context_keys: torch.Tensor,
    context_values: torch.Tensor,
    own_keys: torch.Tensor,
    own_values: torch.Tensor,
    step: int,
) -> torch.Tensor:
    batch, variates, heads, samples, _, _ = own_keys.shape
    layout = RowLayout(batch, variates, samples, Padding(1))
    of_rows = Heads(layout, heads)
    own_keys[..., step, :] = of_rows.split(keys)
    own_values[..., step, :] = of_rows.split(values)
    own = own_keys[..., : step + 1, :], own_values[..., : step + 1, :]
    context = context_keys, context_values
    attended = attend_over_shared_context(of_rows.split(queries), context, own)
    return in_type(of_rows.join(attended), values.dtype)


attend_of_samples = fused.operator(
    "attend_of_samples(Tensor queries, Tensor keys, Tensor values, Tensor context_keys, "
    "Tensor context_values, Tensor(a!) own_keys, Tensor(b!) own_values, int step) -> Tensor",
    _attend_of_samples,
)
"""See SharedContextAttention; each sample's newest keys and values are put in their place."""


def has_kernel(*parts: torch.Tensor) -> bool:
    """Whether a kernel of our own attends."""
    size = parts[-1].shape[-1]
    return size >= LEAST_SIDE and fused.is_side(size) and fused.serves(*parts)


LEAST_SIDE = 16
"""Triton multiplies no blocks with a shorter side."""


def has_log_sums(device: torch.device) -> bool:
    """Whether torch's fused attention says the sums of its weights (LogSumAttention)."""
    return device.type == "cpu" and not why_without(LOG_SUMS)


class LogSumAttention(_AttentionOfSamples):
    """On a CPU: torch's fused attention over the context, whose result and sum of weights the
    sample's own patches are joined with.

    The suffix is ``max_patches batch variate samples head head_dim``; it needs no room for a patch
    that no later one reads.
    """

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        with without_autocast(queries.device):
            dtype = values.dtype
            parts = (queries, keys, values)
            q, k, v = (self.heads.side_by_side(part) for part in parts)
            all_keys, all_values = self.suffix
            own = [*all_keys[: self.step], k], [*all_values[: self.step], v]
            if self.step < all_keys.shape[0]:
                all_keys[self.step], all_values[self.step] = k, v
            attended = attend_by_log_sums(q, self.context, own)
            return in_type(self.heads.layout.flatten(attended.flatten(-2)), dtype)


@dataclass(frozen=True)
class OwnContextAttention:
    """Decode-step attention where a series has one sample, or its mean.

    Context and generated patches share one buffer, so that one of torch's fused kernels serves.
    Takes and returns ``row embed_dim``.

    Attributes:
        heads: of the rows; ``n`` is 1.
        cache: keys and values of context and suffix, ``series head max_len head_dim``.
        length: positions that it holds; this one is added.
    """

    heads: Heads
    cache: KeysAndValues
    length: int

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        with without_autocast(queries.device):
            all_keys, all_values = self.cache
            all_keys.narrow(2, self.length, 1).copy_(self.heads.of_series(keys))
            all_values.narrow(2, self.length, 1).copy_(self.heads.of_series(values))
            seen = (part.narrow(2, 0, self.length + 1) for part in self.cache)
            attended = attend_in_series(self.heads.of_series(queries), *seen)
            return in_type(self.heads.layout.flatten(attended.flatten(1)), values.dtype)


@dataclass(frozen=True)
class VariateAttention:
    """Attention over variates, at each position or in each sample apart.

    Attributes:
        heads: of the rows, whose layout tells which variates see one another.
    """

    heads: Heads

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (self.heads.split(part) for part in (queries, keys, values))
        return self.heads.join(attend_over_variates(q, k, v, self.heads.layout.groups))


def attend_causally(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """The last queries over all that precede them, ``batch variate head seq_len head_dim``.

    Takes a query for every key, or for the last one alone.
    """
    attended = attend_in_series(*(heads.flatten(0, 1) for heads in (queries, keys, values)))
    return attended.view(*queries.shape[:2], *attended.shape[1:])


def attend_in_series(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attends as attend_causally does, ``series head seq_len head_dim``."""
    # The last dimension dense: what torch's fused kernels take.
    q, k, v = map(_dense, (queries, keys, values))
    if k.shape[2] <= (MOST_FOR_ONE if q.shape[2] == 1 else MOST_FOR_ALL) and has_kernel(q, k, v):
        # Heads within rows, as what follows takes them.
        attended: torch.Tensor = attend_to_few(q, k, v).transpose(1, 2)
        return attended
    return scaled_dot_product_attention(q, k, v, is_causal=queries.shape[2] > 1)


MOST_FOR_ONE, MOST_FOR_ALL = 128, 32
"""Keys up to which a kernel of our own is faster than torch's on a GPU, for a single query and for
one for each key."""


def _attend_to_few(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    is_causal = queries.shape[2] > 1
    attended = scaled_dot_product_attention(queries, keys, values, is_causal=is_causal)
    return attended.transpose(1, 2).contiguous()


attend_to_few = fused.operator(
    "attend_to_few(Tensor queries, Tensor keys, Tensor values) -> Tensor", _attend_to_few
)
"""Attends as attend_in_series does, from ``series head seq_len head_dim`` to ``series seq_len head
head_dim``."""


def _dense(heads: torch.Tensor) -> torch.Tensor:
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def attend_over_shared_context(
    queries: torch.Tensor,
    context: tuple[torch.Tensor, torch.Tensor],
    suffix: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Each sample over the one context and over its own generated patches: one softmax.

    The context is read once for all samples (B. Athiwaratkun et al., "Bifurcated Attention",
    2024).

    Args:
        queries: ``batch variate head samples head_dim``.
        context: keys and values, ``batch variate head context_len head_dim``.
        suffix: keys and values, ``batch variate head samples suffix_len head_dim``.

    Returns:
        ``batch variate head samples head_dim``.
    """
    keys, values = context
    own_keys, own_values = suffix
    queries = queries * queries.shape[-1] ** -0.5
    scores = torch.cat(
        [
            queries @ keys.transpose(-1, -2),
            (own_keys @ queries.unsqueeze(-1)).squeeze(-1),
        ],
        dim=-1,
    )
    weights = scores.softmax(-1)
    over_context, over_own = weights.split([keys.shape[-2], own_keys.shape[-2]], dim=-1)
    own = (over_own.unsqueeze(-2) @ own_values).squeeze(-2)
    return own + over_context @ values


def attend_by_log_sums(
    queries: torch.Tensor,
    context: tuple[torch.Tensor, torch.Tensor],
    own: tuple[list[torch.Tensor], list[torch.Tensor]],
) -> torch.Tensor:
    """The same, where the context's part is a fused operator's, weighted by the exponential of its
    log sum as each own patch is by that of its score (T. Dao et al., "FlashAttention", 2022).

    Args:
        queries: ``batch variate samples head head_dim``.
        context: keys and values, ``batch variate head context_len head_dim``.
        own: keys and values of each generated patch, ``batch variate samples head head_dim``.

    Returns:
        ``batch variate samples head head_dim``.
    """
    keys, values = (part.flatten(0, 1) for part in context)
    of_series = queries.flatten(0, 1).transpose(1, 2)
    attended, log_sum = _attend_with_log_sums(of_series, keys, values)
    attended = attended.transpose(1, 2).unflatten(0, queries.shape[:2])
    log_sum = log_sum.transpose(1, 2).unflatten(0, queries.shape[:2])
    scale = queries.shape[-1] ** -0.5
    scores = [torch.linalg.vecdot(key, queries).mul_(scale) for key in own[0]]
    weights = torch.stack([log_sum, *scores]).softmax(0).unsqueeze(-1)
    attended.mul_(weights[0])
    for weight, value in zip(weights[1:], own[1], strict=True):
        attended.addcmul_(weight, value)
    return attended


def attend_over_variates(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: torch.Tensor | None
) -> torch.Tensor:
    """All variates of a group over one another, ``batch variate head n head_dim``.

    Args:
        queries: ``batch variate head n head_dim``; likewise keys and values.
        groups: True where one variate may see another, ``batch #n variate variate``; None: all.
    """
    batch, variates, _, count, _ = values.shape
    q, k, v = (heads.permute(0, 3, 2, 1, 4).flatten(0, 1) for heads in (queries, keys, values))
    mask = None
    if groups is not None:
        mask = groups.expand(batch, count, variates, variates).flatten(0, 1).unsqueeze(1)
    attended = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.unflatten(0, (batch, count)).permute(0, 3, 2, 1, 4)
