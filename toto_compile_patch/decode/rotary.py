"""Rotary embedding with xPos scales, in the forms that suit a CPU, a compiler and a GPU.

Queries are rotated by ``position · frequency`` and multiplied by the xPos scale to the power
``(position - centre) / scale_base``, keys by its inverse (Y. Sun et al., "A Length-Extrapolatable
Transformer", 2022). The centre cancels where it is the same for both. Upstream takes half the last
position of each call, so that in a cached decode each new token has a centre of its own, which does
not cancel against the context's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from toto_compile_patch.decode import fused
from toto_compile_patch.decode.precision import at_least_float32, in_type
from toto_compile_patch.decode.row_layout import RowLayout

KEYS, QUERIES_KEYS = slice(1, 2), slice(0, 2)


class RotarySettings(NamedTuple):
    """What is read of a rotary embedding beside its tensors.

    Attributes:
        scale_base: positions over which the xPos scale falls by one of its factors.
    """

    scale_base: float

    @classmethod
    def of(cls, rotary: Any) -> RotarySettings:
        """Those of upstream's module."""
        return cls(rotary.scale_base)


class RealRotation(NamedTuple):
    """What rotary embedding multiplies each row by, in real numbers: for compiled code, since no
    compiler makes any for complex ones, and for GPUs without kernels of our own.

    Attributes:
        cosines: of queries and of keys, ``row 2 1 head_dim``; likewise sines.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    def rotate(self, heads: torch.Tensor, which: slice) -> torch.Tensor:
        """Rotate ``row n head head_dim`` to ``row n embed_dim``: KEYS, or QUERIES_KEYS."""
        cosines, sines = self.cosines[:, which], self.sines[:, which]
        heads = heads.to(cosines.dtype)
        swapped = heads.unflatten(-1, (-1, 2)).flip(-1).view(heads.shape)
        return torch.addcmul(heads * cosines, swapped, sines).flatten(-2)

    def at_last_position(self, layout: RowLayout) -> RealRotation:
        """Of the rows at a context's last position alone."""
        return RealRotation(*(layout.last_position(table) for table in self))


class ComplexRotation(NamedTuple):
    """The same in complex numbers: for a CPU, in half the passes over memory.

    Attributes:
        turns: what turns the pairs of features, of queries and keys alike, ``row 1 1 head_dim/2``.
        scales: xPos scales of queries and of keys, ``row 2 1 head_dim/2 2``.
    """

    turns: torch.Tensor
    scales: torch.Tensor

    def rotate(self, heads: torch.Tensor, which: slice) -> torch.Tensor:
        """Rotate ``row n head head_dim`` to ``row n embed_dim``: KEYS, or QUERIES_KEYS."""
        in_pairs = in_type(heads, self.scales.dtype).unflatten(-1, (-1, 2))
        turned = torch.view_as_real(torch.view_as_complex(in_pairs) * self.turns)
        scales = self.scales if which == QUERIES_KEYS else self.scales[:, which]
        return turned.mul_(scales).flatten(2)

    def at_last_position(self, layout: RowLayout) -> ComplexRotation:
        """Of the rows at a context's last position alone."""
        return ComplexRotation(*(layout.last_position(table) for table in self))


class RotationByPosition(NamedTuple):
    """The same for a kernel that finds a row's position by itself.

    Attributes:
        cosines: of queries and of keys, ``position 2 head_dim``; likewise sines. Of a series with
            several positions each row is one further; else all rows are at the only one.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    def at_last_position(self, layout: RowLayout) -> RotationByPosition:
        """Of the rows at a context's last position alone."""
        return RotationByPosition(*(table[-1:] for table in self))

    def for_rows(self, rows: int) -> RealRotation:
        """The tables for so many rows."""
        row = torch.arange(rows, device=self.cosines.device) % self.cosines.shape[0]
        return RealRotation(*(table[row].unsqueeze(-2) for table in self))


Rotation = RealRotation | ComplexRotation | RotationByPosition


def rotation(
    rotary: Any,
    layout: RowLayout,
    positions: range,
    centre: int,
    *,
    in_real_numbers: bool,
    like: torch.Tensor,
) -> Rotation:
    """What rotates rows at some positions of a series.

    Args:
        rotary: upstream's rotary embedding.
        layout: of the rows to rotate: ``n`` counts positions, or the samples of a single one.
        positions: the positions.
        centre: of the xPos scale.
        in_real_numbers: whether it must be a RealRotation.
        like: a hidden state.
    """
    dtype = at_least_float32(rotary.freqs.dtype)
    place = positions.start, len(positions), centre, RotarySettings.of(rotary).scale_base
    frequencies, scales = rotary.freqs.to(dtype), rotary.scale.to(dtype)
    is_any_form = not in_real_numbers and fused.is_side(2 * len(frequencies))
    if is_any_form and fused.serves(like, frequencies, scales):
        return RotationByPosition(*rotary_tables(frequencies, scales, *place))
    angles, scales = _angles_and_scales(frequencies, scales, *place)
    if angles.is_cpu and not in_real_numbers:
        turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        turns, scales = (_for_each_row(layout, table) for table in (turns, scales))
        return ComplexRotation(turns, scales.unflatten(-1, (-1, 2)))
    tables = _cosines_and_sines(angles, scales)
    return RealRotation(*(_for_each_row(layout, table) for table in tables))


def _angles_and_scales(
    frequencies: torch.Tensor,
    scales: torch.Tensor,
    first: int,
    count: int,
    centre: int,
    scale_base: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles ``position head_dim/2``, and scales of queries and keys ``position 2 head_dim``."""
    device, dtype = frequencies.device, frequencies.dtype
    position = torch.arange(first, first + count, device=device, dtype=dtype)
    angles = torch.outer(position, frequencies)
    power = (position - centre) / scale_base
    scale = scales ** power.unsqueeze(-1)
    # The frequencies belong to neighbouring pairs, the scales to two halves.
    scale = torch.cat([scale, scale], dim=-1)
    return angles, torch.stack([scale, 1 / scale], dim=1)


def _cosines_and_sines(
    angles: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What features are multiplied by, and their neighbours, ``position 2 head_dim`` each."""
    cosines, sines = (part.repeat_interleave(2, dim=-1) for part in (angles.cos(), angles.sin()))
    sines = torch.stack([-sines[:, ::2], sines[:, 1::2]], dim=-1).flatten(-2)
    return cosines.unsqueeze(1) * scales, sines.unsqueeze(1) * scales


def _rotary_tables(
    frequencies: torch.Tensor,
    scales: torch.Tensor,
    first: int,
    count: int,
    centre: int,
    scale_base: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    parts = _angles_and_scales(frequencies, scales, first, count, centre, scale_base)
    return _cosines_and_sines(*parts)


rotary_tables = fused.operator(
    "rotary_tables(Tensor frequencies, Tensor scales, int first, int count, int centre, "
    "float scale_base) -> (Tensor, Tensor)",
    _rotary_tables,
)


def _for_each_row(layout: RowLayout, table: torch.Tensor) -> torch.Tensor:
    """``#n kinds features`` to ``row kinds 1 features``."""
    table = table.expand(layout.series, layout.count, -1, -1).flatten(0, 1)
    # Always laid out alike, for compiled code.
    return layout.pad(table).contiguous().unsqueeze(-2)
