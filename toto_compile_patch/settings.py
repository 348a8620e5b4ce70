"""What the user asked for: the table of settings, what it reads, and what is in force."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from toto_compile_patch.carriers import SHORT_NAMES
from toto_compile_patch.table import TABLE

PATCH_NAMES = tuple(patch.name for patch in TABLE)
"""Names of the patches, in the order in which they are applied."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
RUNTIMES = ("auto", "eager", "compile", "cudagraph", "compile+cudagraph")
PRECISIONS = ("model", "tf32", "tf32x3", "bf16")

ENV_TOGGLE = "TOTO_COMPILE_PATCH"
"""The environment variable that leaves upstream untouched, or names patches."""

TRUE = ("1", "true", "yes", "on")
"""How an environment variable says yes."""

_FALSE = ("0", "false", "no", "off")


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_TOGGLE}_{name.upper()}"


def _setting(default: Any, choices: tuple[str, ...], purpose: str) -> Any:
    return field(default=default, metadata={"choices": choices, "purpose": purpose})


@dataclass(frozen=True)
class Settings:
    """The state that ``apply()`` is to bring about, and the table of its settings.

    A setting is one line here, and a keyword of ``apply()``: its type, its default, the values that
    it may have, and what it is for. Its environment variable, the checks of what is given and the
    README's table follow from that line.

    Attributes:
        enabled: False when ``TOTO_COMPILE_PATCH=0`` asks for upstream untouched.
        patches: names of the patches wanted, in the table's order.
        carriers: the packages of the carriers wanted; None: every one that fits.
    """

    enabled: bool = True
    patches: tuple[str, ...] = PATCH_NAMES
    carriers: tuple[str, ...] | None = None
    strict: bool = _setting(
        True,
        TRUE + _FALSE,
        "whether to raise where a patch does not fit the installed code, or to leave it out",
    )
    mode: str = _setting("reduce-overhead", COMPILE_MODES, "mode of `compile()`")
    rng: str = _setting("fast", ("fast", "upstream"), "which random numbers the fast path draws")
    fallback: str = _setting(
        "warn",
        ("warn", "upstream", "error"),
        "what happens to a forecast that the fast path does not know",
    )
    runtime: str = _setting("auto", RUNTIMES, "how the fast path runs")
    precision: str = _setting(
        "model", PRECISIONS, "precision of the fast path's matrix products in a float32 model"
    )
    log: str | None = _setting(
        None,
        ("debug", "info", "warning", "error", "critical"),
        "show the package's log on stderr from this level on",
    )

    @classmethod
    def resolve(
        cls,
        patches: str | Iterable[str] | None = None,
        environ: Mapping[str, str] | None = None,
        carriers: str | Iterable[str] | None = None,
        **given: Any,
    ) -> Settings:
        """Combine arguments, environment and defaults, in that order of precedence.

        Args:
            patches: names of the patches; None where the environment is to say.
            environ: the environment; default: that of the process.
            carriers: names of the carriers; None where the environment is to say.
            **given: settings by their names; None where the environment is to say.

        Raises:
            ValueError: an unknown name or value, in an argument or in the environment.
            TypeError: an argument of the wrong type, or that is no setting.
        """
        environ = os.environ if environ is None else environ
        enabled, listed = _read_toggle(environ)
        wanted = listed if patches is None else _patch_names(patches, "patches")
        named = _carrier_names(carriers, environ)
        read = {one.name: one.read(given.pop(one.name, None), environ) for one in SETTINGS}
        return cls(enabled, wanted, named, **read, **given)

    def wants(self, carrier: str) -> bool:
        """Whether a carrier is to be patched, if its code fits."""
        return self.carriers is None or carrier in self.carriers


@dataclass(frozen=True)
class Setting:
    """One line of the table of settings.

    Attributes:
        name: that of the keyword of ``apply()``.
        default: what holds where neither argument nor environment says.
        choices: the values that it may have; of a flag, how the environment writes them.
        purpose: what it is for, in half a sentence.
    """

    name: str
    default: Any
    choices: tuple[str, ...]
    purpose: str

    def read(self, given: Any, environ: Mapping[str, str]) -> Any:
        """The value given, else that of the environment, else the default.

        Raises:
            ValueError: an unknown value.
            TypeError: a value of the wrong type.
        """
        is_flag = isinstance(self.default, bool)
        if is_flag and given is not None:
            if isinstance(given, bool):
                return given
            raise TypeError(f"{self.name} must be True or False, not {given!r}")
        source, value = self.name, given
        if value is None:
            source = variable_of(self.name)
            value = environ.get(source, "")
        if not isinstance(value, str):
            raise TypeError(f"{source} must be one of {', '.join(self.choices)}, not {value!r}")
        value = value.strip().lower()
        if not value:
            return self.default
        if value not in self.choices:
            raise ValueError(f"{source}={value!r}: choose one of {', '.join(self.choices)}")
        return value in TRUE if is_flag else value


SETTINGS = tuple(
    Setting(line.name, line.default, **line.metadata) for line in fields(Settings) if line.metadata
)
"""The table of settings, in the order in which ``apply()`` takes them."""

_wanted: Settings | None = None


def wanted() -> Settings | None:
    """What the last apply() asked for; None before the first and after a revert()."""
    return _wanted


def in_force() -> Settings:
    """What the last apply() asked for, else the defaults; forecasts read it anew each time."""
    return _wanted or Settings()


def put_in_force(settings: Settings | None) -> None:
    """Make settings those that are wanted, and that forecasts read from now on."""
    global _wanted
    _wanted = settings


def _read_toggle(environ: Mapping[str, str]) -> tuple[bool, tuple[str, ...]]:
    text = environ.get(ENV_TOGGLE, "").strip().lower()
    if text in _FALSE:
        return False, PATCH_NAMES
    if text in TRUE or not text:
        return True, PATCH_NAMES
    return True, _patch_names(text, ENV_TOGGLE)


def _patch_names(names: str | Iterable[str], source: str) -> tuple[str, ...]:
    """Check names against the table of patches and put them in its order."""
    wanted = _listed(names, source, "patch names")
    if unknown := [name for name in wanted if name not in PATCH_NAMES]:
        known = PATCH_NAMES if source != ENV_TOGGLE else TRUE + _FALSE + PATCH_NAMES
        raise ValueError(f"{source}: unknown patch {unknown[0]!r}; choose from {', '.join(known)}")
    return tuple(name for name in PATCH_NAMES if name in wanted)


def _carrier_names(
    names: str | Iterable[str] | None, environ: Mapping[str, str]
) -> tuple[str, ...] | None:
    """The packages of the carriers that an argument names, else the environment; None: all."""
    source = "carriers"
    if names is None:
        source = variable_of("carriers")
        names = environ.get(source, "").strip()
        if not names:
            return None
    known = {**SHORT_NAMES, **{package.lower(): package for package in SHORT_NAMES.values()}}
    wanted = _listed(names, source, "names of carriers")
    if unknown := [name for name in wanted if name not in known]:
        choices = ", ".join(SHORT_NAMES)
        raise ValueError(f"{source}: unknown carrier {unknown[0]!r}; choose from {choices}")
    return tuple(dict.fromkeys(known[name] for name in wanted))


def _listed(names: str | Iterable[str], source: str, what: str) -> list[str]:
    """Names in small letters, of a comma-separated string or of several."""
    if isinstance(names, str):
        names = names.split(",")
    try:
        wanted = list(names)
    except TypeError:
        raise TypeError(f"{source} must be {what}, not {names!r}") from None
    if bad := [name for name in wanted if not isinstance(name, str)]:
        raise TypeError(f"{source} must be {what}, not {bad[0]!r}")
    return [name.strip().lower() for name in wanted]
