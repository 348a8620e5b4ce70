"""A forecast that was captured in a CUDA graph, and a replay of it for another request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.recorder import Graph, Outputs
from toto_compile_patch.decode.request import Request
from toto_compile_patch.decode.weights import Weights

_replays: Counter[torch.device] = Counter()
"""How often a graph was replayed on each device. Its graphs share memory: a replay may write where
another one's outputs were."""


@dataclass(eq=False)
class Captured:
    """A graph with its own inputs and outputs.

    Attributes:
        graph: what to replay.
        inputs: the request whose tensors it reads.
        outputs: what it writes.
        weights: what it also reads, kept alive.
        options: how it forecasts.
        size: bytes that capturing it took.
        may_go_ahead: whether it may be launched before a forecast is checked: not after a launch
            in vain, until a forecast that was checked has asked for it again.
    """

    graph: Graph
    inputs: Request
    outputs: Outputs
    weights: Weights
    options: Any
    size: int
    may_go_ahead: bool = False

    @property
    def device(self) -> torch.device:
        """Where it is replayed."""
        return self.inputs.inputs.device

    def replay(self, request: Request, seed: int | None) -> Replay:
        """Launch it.

        Args:
            request: one of the shape of ``inputs``.
            seed: of the random numbers; None: none are drawn.
        """
        # Counted first: a signal handler may forecast between any two of these lines.
        _replays[self.device] += 1
        number = _replays[self.device]
        for name, tensor in request.tensors().items():
            getattr(self.inputs, name).copy_(tensor)
        self.graph.replay(seed)
        # Asked for now, they are there as soon as the graph is through, whatever the host does.
        result, outcomes = self.outputs
        return Replay(self, number, seed, (result.clone(), outcomes.clone()))


@dataclass(frozen=True)
class Replay:
    """A replay that was launched.

    Attributes:
        captured: what is replayed.
        number: which of its device's replays this is.
        seed: with which it draws; None: it draws nothing.
        results: copies of the forecast and of the outcomes of its checks.
    """

    captured: Captured
    number: int
    seed: int | None
    results: Outputs

    def is_what(self, captured: Captured, seed: int | None) -> bool:
        """Whether a forecast by ``captured`` that draws with ``seed`` can take its outputs."""
        is_last = self.number == _replays[captured.device]
        return self.captured is captured and is_last and self.seed == seed
