"""What a doctor finds: something in the way, or something to know, and its cure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

APPLY = "import toto_compile_patch; toto_compile_patch.apply()"
OLDER_HUB = "pip install 'huggingface_hub<1', or Toto.load_from_checkpoint(directory)"
WITHOUT_XFORMERS = "load the model with use_memory_efficient_attention=False"

_PREFIXES = ("TOTO_COMPILE_PATCH", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: ``problem``: in the way of what was asked for; ``trap``: bites whoever comes near;
            ``note``: good to know.
        what: what it is, in plain words.
        cure: what to do about it, in one line; empty where nothing is to be done.
    """

    level: str
    what: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What was looked at, and the diagnosis.

    Attributes:
        findings: what is in the way, traps, and what is good to know.
    """

    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is in the way of what was asked for."""
        return not problems(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"healthy": self.healthy, **asdict(self)}


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that are in the way."""
    return [finding for finding in findings if finding.level == "problem"]


def bearing_variables() -> dict[str, str]:
    """The environment variables that bear on compiling and on this package."""
    return {name: text for name, text in sorted(os.environ.items()) if name.startswith(_PREFIXES)}


def compiling_switched_off(variables: dict[str, str], level: str) -> Iterator[Finding]:
    """What an environment variable says against all compiling."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if variables.get(name, "0") not in ("", "0"):
            yield Finding(level, f"{name} is set: torch.compile does nothing.", f"unset {name}")
