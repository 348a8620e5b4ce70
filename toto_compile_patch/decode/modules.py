"""A walk over a model's modules, at each forecast.

``Module.modules()`` and ``parameters()`` take several times as long: they make names on the way.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def modules_of(root: nn.Module) -> list[nn.Module]:
    """A module and all those within it, each once."""
    found, known = [root], {root}
    for module in found:
        for child in module._modules.values():
            if child is not None and child not in known:
                known.add(child)
                found.append(child)
    return found


def parameters_of(root: nn.Module) -> list[nn.Parameter]:
    """All parameters of a module and of those within it; what several share comes as often."""
    return parameters_within(modules_of(root))


def parameters_within(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters that some modules hold themselves."""
    return [
        parameter
        for module in modules
        for parameter in module._parameters.values()
        if parameter is not None
    ]


def tensors_of(root: nn.Module) -> list[torch.Tensor]:
    """All parameters and buffers of a module and of those within it."""
    return [
        tensor
        for module in modules_of(root)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def name_of(part: object, named: Iterable[tuple[str, object]]) -> str:
    """What a part of a model is called among all that have names; the whole is the model."""
    return next(name for name, one in named if one is part) or "the model"
