"""What the user asked for: one frozen object, read from arguments and the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from toto_compile_patch.table import TABLE

PATCH_NAMES = tuple(patch.name for patch in TABLE)
"""Names of the patches, in the order in which they are applied."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
FALLBACKS = ("warn", "upstream", "error")
RNGS = ("fast", "upstream")
RUNTIMES = ("auto", "eager", "compile", "cudagraph", "compile+cudagraph")
PRECISIONS = ("model", "tf32", "bf16")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

ENV_TOGGLE = "TOTO_COMPILE_PATCH"
ENV_MODE = "TOTO_COMPILE_PATCH_MODE"
ENV_STRICT = "TOTO_COMPILE_PATCH_STRICT"
ENV_RNG = "TOTO_COMPILE_PATCH_RNG"
ENV_FALLBACK = "TOTO_COMPILE_PATCH_FALLBACK"
ENV_RUNTIME = "TOTO_COMPILE_PATCH_RUNTIME"
ENV_PRECISION = "TOTO_COMPILE_PATCH_PRECISION"
ENV_LOG = "TOTO_COMPILE_PATCH_LOG"

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """The state that ``apply()`` is to bring about.

    Attributes:
        enabled: False when ``TOTO_COMPILE_PATCH=0`` asks for upstream untouched.
        patches: names of the patches wanted, in the table's order.
        strict: raise on code that was not tested, instead of skipping that patch.
        mode: the ``torch.compile`` mode of ``toto_compile_patch.compile``.
        rng: ``fast`` or ``upstream``: which random numbers the fast path draws.
        fallback: one of FALLBACKS: what happens to a forecast that it does not know: upstream's
            code makes it, with a warning or without; or an error.
        runtime: one of RUNTIMES: how the fast path runs.
        precision: one of PRECISIONS: of the fast path's matrix products.
        log: level at which the package's log is shown on stderr; None leaves logging alone.
    """

    enabled: bool = True
    patches: tuple[str, ...] = PATCH_NAMES
    strict: bool = True
    mode: str = "reduce-overhead"
    rng: str = "fast"
    fallback: str = "warn"
    runtime: str = "auto"
    precision: str = "model"
    log: str | None = None

    @classmethod
    def resolve(
        cls,
        patches: str | Iterable[str] | None = None,
        strict: bool | None = None,
        mode: str | None = None,
        rng: str | None = None,
        fallback: str | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        log: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Combine arguments, environment and defaults, in that order of precedence.

        Raises:
            ValueError: an unknown name or value, in an argument or in the environment.
            TypeError: an argument of the wrong type.
        """
        environ = os.environ if environ is None else environ
        enabled, listed = _read_toggle(environ)
        wanted = listed if patches is None else _patch_names(patches, "patches")
        if strict is None:
            strict = _read_flag(environ, ENV_STRICT, default=True)
        elif not isinstance(strict, bool):
            raise TypeError(f"strict must be True or False, not {strict!r}")
        return cls(
            enabled=enabled,
            patches=wanted,
            strict=strict,
            mode=_read_choice(mode, "mode", environ, ENV_MODE, COMPILE_MODES) or cls.mode,
            rng=_read_choice(rng, "rng", environ, ENV_RNG, RNGS) or cls.rng,
            fallback=_read_choice(fallback, "fallback", environ, ENV_FALLBACK, FALLBACKS)
            or cls.fallback,
            runtime=_read_choice(runtime, "runtime", environ, ENV_RUNTIME, RUNTIMES) or cls.runtime,
            precision=_read_choice(precision, "precision", environ, ENV_PRECISION, PRECISIONS)
            or cls.precision,
            log=_read_choice(log, "log", environ, ENV_LOG, LOG_LEVELS),
        )


_wanted: Settings | None = None
_DEFAULT = Settings()


def wanted() -> Settings | None:
    """What the last apply() asked for; None before the first and after a revert()."""
    return _wanted


def in_force() -> Settings:
    """The settings of the last apply(), for what reads them at each forecast."""
    return _wanted or _DEFAULT


def put_in_force(settings: Settings | None) -> None:
    """Make settings those that are wanted, and that forecasts read from now on."""
    global _wanted
    _wanted = settings


def _read_toggle(environ: Mapping[str, str]) -> tuple[bool, tuple[str, ...]]:
    text = environ.get(ENV_TOGGLE, "").strip().lower()
    if text in _FALSE:
        return False, PATCH_NAMES
    if text in _TRUE or not text:
        return True, PATCH_NAMES
    return True, _patch_names(text, ENV_TOGGLE)


def _patch_names(names: str | Iterable[str], source: str) -> tuple[str, ...]:
    """Check names against the table and put them in the table's order."""
    if isinstance(names, str):
        names = names.split(",")
    try:
        wanted = list(names)
    except TypeError:
        raise TypeError(f"{source} must be patch names, not {names!r}") from None
    if bad := [name for name in wanted if not isinstance(name, str)]:
        raise TypeError(f"{source} must be patch names, not {bad[0]!r}")
    wanted = [name.strip().lower() for name in wanted]
    if unknown := [name for name in wanted if name not in PATCH_NAMES]:
        known = PATCH_NAMES if source != ENV_TOGGLE else _TRUE + _FALSE + PATCH_NAMES
        raise ValueError(f"{source}: unknown patch {unknown[0]!r}; choose from {', '.join(known)}")
    return tuple(name for name in PATCH_NAMES if name in wanted)


def _read_flag(environ: Mapping[str, str], variable: str, default: bool) -> bool:
    text = environ.get(variable, "").strip().lower()
    if not text:
        return default
    if text not in _TRUE + _FALSE:
        raise ValueError(f"{variable}={text!r}: choose one of {', '.join(_TRUE + _FALSE)}")
    return text in _TRUE


def _read_choice(
    argument: str | None,
    keyword: str,
    environ: Mapping[str, str],
    variable: str,
    choices: tuple[str, ...],
) -> str | None:
    source = variable if argument is None else keyword
    value = environ.get(variable, "") if argument is None else argument
    if not isinstance(value, str):
        raise TypeError(f"{source} must be one of {', '.join(choices)}, not {value!r}")
    value = value.strip().lower()
    if value and value not in choices:
        raise ValueError(f"{source}={value!r}: choose one of {', '.join(choices)}")
    return value or None
