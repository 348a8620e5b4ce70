"""A walk over a model's modules, at each forecast.

``Module.modules()`` and ``parameters()`` take several times as long: they make names on the way.
"""

from __future__ import annotations

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
    """All parameters within a module; one that several modules share comes as often."""
    return [
        parameter
        for module in modules_of(root)
        for parameter in module._parameters.values()
        if parameter is not None
    ]


def name_of(module: nn.Module, root: nn.Module) -> str:
    """What a module within another is called there; the other itself is the model."""
    names = (name for name, part in root.named_modules() if part is module)
    return next(names) or "the model"
