"""A walk over a model's modules, once for each forecast.

``Module.modules()`` and ``parameters()`` take several times as long: they make names on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn


class ModelParts(NamedTuple):
    """What a model consists of, now.

    Attributes:
        modules: the model and all modules within it, each once.
        parameters: theirs; what several share comes as often.
        buffers: likewise.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]
    buffers: list[torch.Tensor]

    @property
    def root(self) -> Any:
        """The model itself."""
        return self.modules[0]

    @classmethod
    def of(cls, root: nn.Module) -> ModelParts:
        """Those of a model, or of a part of one."""
        modules, parameters, buffers = [root], [], []
        known = {root}
        for module in modules:
            for child in module._modules.values():
                if child is not None and child not in known:
                    known.add(child)
                    modules.append(child)
            # Most have none.
            if module._parameters:
                for parameter in module._parameters.values():
                    if parameter is not None:
                        parameters.append(parameter)
            if module._buffers:
                for buffer in module._buffers.values():
                    if buffer is not None:
                        buffers.append(buffer)
        return cls(modules, parameters, buffers)


def name_of(part: object, named: Iterable[tuple[str, object]]) -> str:
    """What a part of a model is called among all that have names; the whole is the model."""
    return next(name for name, one in named if one is part) or "the model"
