"""How a changed weight is noticed, whatever changed it.

What is prepared of a weight is a copy, which must not outlive a change of the weight. No identity
or version tells of all changes: ``weight.data``, numpy, a storage, DLPack and fused optimizers
write past them. To read all weights again would take as long as a forecast. So at each forecast
some of their bits are compared, chosen by structure and not at regular distances:

- a diagonal of each matrix, which meets every row and every column of it. An edit of a whole row,
  column or head, and whatever contains one, is seen at the next forecast.
- a stretch of each weight, another one at each forecast, by a hash that was noted when the weight
  was prepared. After ``STRETCHES`` forecasts every element has been read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

STRETCHES = 512
"""Forecasts after which any change has been noticed."""

_STRIDE = 317
"""From one forecast's stretch to the next one's: far, so that an edited block is met soon. Odd, so
that all have their turn."""

_HASHED_AT_ONCE = 64
"""Stretches of a weight that are hashed together, so that they stay in a CPU's cache."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BYTES_OF_A_WORD = 8


@dataclass(frozen=True)
class Noted:
    """The bits of weights when they were noted.

    Attributes:
        places: views of the weights that are compared at each forecast, their bits as integers.
        bits: what they held.
        stretches: views of the weights, each ``STRETCHES word``.
        factors: odd random numbers by which a stretch of all weights is multiplied, ``word``. The
            sum of products cannot stay what it was if a single word changed.
        hashes: the sums, for each of the ``STRETCHES``.
        turns: counts the forecasts; on a GPU by itself, so that a CUDA graph goes on counting.
        seen: elsewhere than on a CPU, whether a change was ever seen: a forecast may be launched
            whose outcome nobody looks at.
    """

    places: tuple[torch.Tensor, ...]
    bits: tuple[torch.Tensor, ...]
    stretches: tuple[torch.Tensor, ...]
    factors: torch.Tensor
    hashes: torch.Tensor
    turns: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, weights: Sequence[torch.Tensor]) -> Noted:
        """Note the bits of some weights.

        Args:
            weights: on one device and of one type. Of the last one, ``patch_size·n m``, a forecast
                may need the rows of the first time steps of a patch alone (see ``changed``).
        """
        places: list[torch.Tensor] = []
        stretches: list[torch.Tensor] = []
        for weight in weights:
            stretched, rest = _stretches(weight)
            stretches += stretched
            places += [*rest, *_diagonal(weight)]
        widths = [stretch.shape[1] for stretch in stretches]
        generator = torch.Generator().manual_seed(sum(widths))
        shape, bound = (sum(widths),), 2**62
        factors = torch.randint(-bound, bound, shape, generator=generator, device="cpu")
        factors = (2 * factors + 1).to(weights[0].device)
        hashes = factors.new_zeros(STRETCHES)
        for stretch, own in zip(stretches, factors.split(widths), strict=True):
            hashed = [(some * own).sum(-1) for some in stretch.split(_HASHED_AT_ONCE)]
            hashes += torch.cat(hashed)
        return cls(
            tuple(places),
            tuple(place.clone() for place in places),
            tuple(stretches),
            factors,
            hashes,
            hashes.new_zeros(1),
            hashes.new_zeros((), dtype=torch.bool),
        )

    @classmethod
    def nothing(cls, device: torch.device) -> Noted:
        """For weights that are used once, so that nobody asks whether they have changed."""
        none = torch.empty(0, dtype=torch.int64, device=device)
        turns, seen = none.new_zeros(1), none.new_zeros((), dtype=torch.bool)
        return cls((), (), (), none, none, turns, seen)

    def changed(self, time_steps: int | None = None) -> torch.Tensor:
        """Whether a change is seen, as a boolean on the weights' device, which is not waited for.

        Only one thread at a time may ask, or some stretch would be left out.

        Args:
            time_steps: of a patch, if only their rows of the last weight are needed.
        """
        places, bits = self.places, self.bits
        if time_steps is not None and places[-1].ndim == 2:
            places = (*places[:-1], places[-1][:time_steps])
            bits = (*bits[:-1], bits[-1][:time_steps])
        turn = self.turns * _STRIDE % STRETCHES
        self.turns.add_(1)
        if self.factors.is_cpu:
            # Each in one thread: many small parallel regions suffer where cores are wanted.
            same = all(map(torch.equal, places, bits)) and self._stretch_is_same(int(turn))
            return torch.tensor(not same, device="cpu")
        changed = (_joined(places) != _joined(bits)).any()
        if self.stretches:
            words = torch.cat([stretch.index_select(0, turn) for stretch in self.stretches], dim=1)
            hashed = (words * self.factors).sum()
            changed = changed | (hashed != self.hashes.index_select(0, turn)).any()
        return self.seen.logical_or_(changed)

    def _stretch_is_same(self, turn: int) -> bool:
        """Whether a stretch of all weights holds what was noted, on a CPU."""
        if not self.stretches:
            return True
        words = torch.cat([stretch[turn] for stretch in self.stretches])
        return bool(words.dot(self.factors) == self.hashes[turn])


def _joined(places: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is at some places, ``element``, in one tensor."""
    return torch.cat([place.flatten() for place in places])


def _bits(weight: torch.Tensor) -> torch.Tensor:
    """A view of a weight's bits, in which a NaN is equal to itself."""
    return weight.detach().view(_BITS[weight.element_size()])


def _diagonal(weight: torch.Tensor) -> list[torch.Tensor]:
    """Views that meet every row and every column of a matrix; of anything else, all of it.

    The last one is ``block place``, square blocks of a matrix with more rows than columns.
    """
    bits = _bits(weight)
    if bits.ndim != 2 or not bits.numel():
        return [bits]
    (rows, columns), (down, right), start = bits.shape, bits.stride(), bits.storage_offset()
    if rows >= columns:
        blocks, left = divmod(rows, columns)
        squares = bits.as_strided((blocks, columns), (columns * down, down + right), start)
        start += blocks * columns * down
    else:
        # Of each row some neighbours, which lie in one line of a CPU's cache.
        blocks, left = divmod(columns, rows)
        squares = bits.as_strided((blocks, rows), (right, down + blocks * right), start)
        start += blocks * rows * right
    return [bits.as_strided((left,), (down + right,), start), squares] if left else [squares]


def _stretches(weight: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Views of a weight's memory, ``STRETCHES word``, and of what is left over."""
    bits = _bits(weight)
    if not (bits.is_contiguous() or (bits.ndim == 2 and bits.t().is_contiguous())):
        return [], [bits]
    flat = bits.as_strided((bits.numel(),), (1,))
    in_a_word = _BYTES_OF_A_WORD // bits.element_size()
    first = -bits.storage_offset() % in_a_word
    words = max(0, flat.numel() - first) // in_a_word // STRETCHES
    last = first + words * STRETCHES * in_a_word
    rest = [part for part in (flat[:first], flat[last:]) if part.numel()]
    if not words:
        return [], [bits]
    return [flat[first:last].view(torch.int64).view(STRETCHES, words)], rest
