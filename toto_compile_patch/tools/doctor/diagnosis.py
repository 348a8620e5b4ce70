"""From what was seen of a script to what is wrong with it, in plain words, with the cure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools.doctor.examination import Examination
from toto_compile_patch.tools.doctor.findings import (
    APPLY,
    OLDER_HUB,
    WITHOUT_XFORMERS,
    Finding,
    compiling_switched_off,
)

_READS_OF_THE_CACHE = ("KVCache.", "BaseMultiheadAttention.positional_embedding")
_OFF = ("0", "false", "no", "off")
_LONG_COMPILING = 10.0
"""Seconds of compiling that nobody would ask about."""

_KNOWN_ERRORS = {
    "_from_pretrained.*proxies": (
        "huggingface_hub 1 or newer breaks upstream's Toto.from_pretrained.",
        OLDER_HUB,
    ),
    "memory_efficient_attention": (
        "xformers' attention has no kernel for this device.",
        WITHOUT_XFORMERS,
    ),
    "_standard_gamma.*not implemented": (
        "On a CPU, upstream cannot draw samples in 16 bits.",
        f"{APPLY}, whose fast path can; or a float32 model without autocast",
    ),
    r"C\+\+ compiler": (
        "torch.compile needs a C++ compiler on a CPU.",
        "install g++, or set CXX to a compiler",
    ),
    "No module named.*toto": ("toto is not installed.", "pip install toto-ts"),
    "FallbackError": (
        "apply(fallback='error') forbids upstream's code, which this forecast needs.",
        "apply(fallback='upstream'), or do what the error says is in the way",
    ),
    "FailOnRecompileLimitHit": (
        "fullgraph=True turns a recompile limit into an error.",
        "leave fullgraph out, or raise torch._dynamo.config.recompile_limit",
    ),
}
"""By a pattern of the exception's text: what it means, and the cure."""

_KNOWN_REASONS = (
    ("training mode", "model.eval() after the forecaster was made"),
    ("hooks", "remove the hooks before forecasting"),
    ("has been replaced", "take out what replaced it"),
    ("has its own", "give the method back: what stands in for it is known to the fast path alone"),
    ("not as the model", "give the series the model's dtype and device"),
    ("unusual argument", "see the argument named"),
)
"""What a reason of the fast path contains, and the cure."""

Forecasts: TypeAlias = "list[dict[str, Any]]"
"""Forecasts that were made alike, and how many (``count``)."""


def diagnose(found: Examination, set_too_late: list[str], countable: bool) -> Iterator[Finding]:
    """All that is to be said, the gravest first.

    Args:
        found: what was seen.
        set_too_late: environment variables set after dynamo had read its own.
        countable: whether forecasts of unpatched code could be seen.
    """
    yield from _failure(found)
    yield from _unreached(found)
    nothing_compiled = list(_nothing_compiled(found))
    falls_to_pieces = list(_falls_to_pieces(found))
    yield from nothing_compiled
    yield from falls_to_pieces
    if not nothing_compiled and not falls_to_pieces:
        yield from _unpatched(found)
    yield from _before_apply(found)
    yield from _fallbacks(found)
    if found.limits and not falls_to_pieces:
        what = f"The recompile limit was hit in {_limited(found)}, which runs uncompiled since."
        cure = "raise torch._dynamo.config.recompile_limit, or see below what varies"
        yield Finding("problem", what, cure)
    yield from _long_compiling(found)
    for name in set_too_late:
        what = f"{name} was set too late: torch reads it once, when torch._dynamo is imported."
        option = name.removeprefix("TORCHDYNAMO_").lower()
        cure = f"set it in the shell, or before importing torch; or torch._dynamo.config.{option}"
        yield Finding("problem", what, cure)
    yield from compiling_switched_off(found.variables, "problem")
    yield from _notes(found)
    if not countable:
        yield Finding("note", "Forecasts of this toto's unpatched code could not be counted.")
    elif not found.forecasts:
        what = "No forecast was seen. Those of processes that the script starts are not seen."
        yield Finding("note", what)


def _failure(found: Examination) -> Iterator[Finding]:
    if not found.error:
        if found.exit_code:
            yield Finding("problem", f"The script ended with exit code {found.exit_code}.")
        return
    for pattern, (meaning, cure) in _KNOWN_ERRORS.items():
        if re.search(pattern, found.error, re.DOTALL):
            yield Finding("problem", f"The script failed: {meaning}", cure)
            return
    first_line = next(iter(found.error.splitlines()), found.error).rstrip(".")
    yield Finding("problem", f"The script failed with {first_line}.")


def _unreached(found: Examination) -> Iterator[Finding]:
    """Forecasts by code that apply() does not reach, or such code where no other forecast is."""
    for carrier in found.unreached:
        name = carrier["name"]
        ways = [way for way in found.forecasts if way["carrier"] == name]
        what = f"`{name}` is loaded, and apply() does not reach it ({carrier['folder']})."
        if ways:
            what = f"{_made(ways)} by `{name}`, which apply() does not reach, at {_places(ways)}."
        level = "problem" if ways or not found.forecasts else "note"
        yield Finding(level, what, carrier["advice"])


def _nothing_compiled(found: Examination) -> Iterator[Finding]:
    """Somebody asked for compiling, and no forecast was asked of a compiled model."""
    if not found.calls or not found.forecasts or any(way["compiled"] for way in found.forecasts):
        return
    lines = {_line_of(call): call for call in found.calls}
    why = "; ".join(
        f"{line} at {call['place']}: {_why_nothing(call)}" for line, call in lines.items()
    )
    cure = (
        f"before it: {APPLY} (many times faster, without compiling); or, to compile upstream's "
        "code as it is: toto.model.compile()"
    )
    if _fast(found):
        cure = "leave that out (the fast path needs no compiling), or write toto.compile()"
    yield Finding("problem", f"NOTHING WAS COMPILED. {why}.", cure)


def _line_of(call: dict[str, Any]) -> str:
    name = {"Toto": "toto", "TotoBackbone": "model", "TotoForecaster": "forecaster"}[call["target"]]
    return f"{name}.compile()" if call["how"] == "method" else f"torch.compile({name})"


def _why_nothing(call: dict[str, Any]) -> str:
    if call["target"] == "Toto":
        return "Toto has no forward, and a forecaster calls toto.model"
    if call["how"] == "function":
        return "its result is not what the forecaster holds"
    return "no forecaster calls this model"


def _falls_to_pieces(found: Examination) -> Iterator[Finding]:
    """Upstream's code in a compiled model, without the patches that are for it."""
    reads = sum(
        group.count
        for group in found.breaks
        if any(name.startswith(_READS_OF_THE_CACHE) for name in group.functions)
    )
    unpatched = any(
        way["path"] == "upstream" and way["compiled"] and not way["patches"] and not way["carrier"]
        for way in found.forecasts
    )
    if not unpatched or not found.counts or not (reads or found.limits):
        return
    limit = "The recompile limit was not reached; further lengths may."
    if found.limits:
        limit = (
            f"The recompile limit was hit in {_limited(found)}, which runs uncompiled from there "
            "on; the counts are cut short by it."
        )
    what = (
        "Upstream's compiled model falls to pieces: {graphs} graphs, {graph_breaks} graph breaks, "
        "{recompilations} recompilations. ".format_map(found.counts)
        + "positional_embedding (toto/model/attention.py) reads and moves the cache's position on "
        f"the device, in each layer: {reads} of the {sum(group.count for group in found.breaks)} "
        "breaks listed; what is between them is compiled again for other layers and lengths. "
        + limit
    )
    cure = (
        f"before the first forecast: {APPLY}. The fast path makes the forecast from five graphs "
        "without breaks if the model is compiled"
    )
    yield Finding("problem", what, cure)


def _unpatched(found: Examination) -> Iterator[Finding]:
    ways = [way for way in found.forecasts if _is_unpatched(way)]
    if ways and not _fast(found):
        cure = f"before the first forecast: {APPLY}"
        if found.variables.get(ENV_TOGGLE, "").strip().lower() in _OFF:
            cure = f"unset {ENV_TOGGLE}, whose 0 leaves upstream untouched"
        yield Finding("problem", f"{_made(ways)} by upstream's code, unpatched.", cure)


def _before_apply(found: Examination) -> Iterator[Finding]:
    early, fast = [way for way in found.forecasts if _is_unpatched(way)], _fast(found)
    if early and fast:
        before = early[0]["first"] < min(way["first"] for way in fast)
        when = "before apply()" if before else "after revert()"
        cure = "apply() at the script's start, or patched() around all of them"
        yield Finding("problem", f"{_made(early)} unpatched, {when}, at {_places(early)}.", cure)


def _fallbacks(found: Examination) -> Iterator[Finding]:
    fallbacks = _by_reason(found, "upstream").items()
    for (reason, _), ways in sorted(fallbacks, key=lambda item: -_total(item[1])):
        cure = next((text for part, text in _KNOWN_REASONS if part in reason), "")
        what = f"{_made(ways)} by upstream's code although patched, at {_places(ways)}: {reason}."
        yield Finding("problem", what, cure or "see 'The patches' in the README")


def _long_compiling(found: Examination) -> Iterator[Finding]:
    """Compiling that took long, and longer than all that it was for."""
    seconds = found.seconds or {}
    compiling, forecasting = seconds.get("compiling", 0.0), seconds.get("forecasting", 0.0)
    if compiling < _LONG_COMPILING or compiling <= forecasting or not found.forecasts:
        return
    what = (
        f"Compiling took {compiling:.0f} s, and all forecasts together {forecasting:.1f} s beside "
        "that: less than it cost to compile them."
    )
    cure = (
        "make many forecasts in one process; and keep what was compiled from one run to the next, "
        "in a TORCHINDUCTOR_CACHE_DIR that lasts"
    )
    if any(way["device"] == "cpu" for way in found.forecasts):
        cure = (
            "on a CPU, where compiling gains little, leave out toto.compile(), torch.compile and "
            f"runtime='compile'; or {cure}"
        )
    yield Finding("problem", what, cure)


def _notes(found: Examination) -> Iterator[Finding]:
    """What is in nobody's way: autocast, other runtimes than asked for, graphs not captured."""
    if ways := [way for way in found.forecasts if way["autocast"]]:
        what = f"{_made(ways)} within torch.autocast({ways[0]['autocast']!r})."
        cure = "leave it out; for matrix products in 16 bits alone: apply(precision='bf16')"
        yield Finding("note", what, cure)
    for (reason, runtime), ways in _by_reason(found, "fast").items():
        yield Finding("note", f"{_made(ways)} in runtime {runtime}: {reason}.")
    for reason, count in found.skips.items():
        cure = "on a CPU: mode='default'" if "cpu device" in reason else ""
        yield Finding("note", f"{count} graphs not captured as CUDA graphs: {reason}.", cure)


def _fast(found: Examination) -> Forecasts:
    return [way for way in found.forecasts if way["path"] == "fast"]


def _is_unpatched(way: dict[str, Any]) -> bool:
    others = way["reason"] or way["patches"] or way["carrier"]
    return way["path"] == "upstream" and not others


def _by_reason(found: Examination, path: str) -> dict[tuple[str, str], Forecasts]:
    """Forecasts on a path that there was a reason for, by that and the runtime."""
    groups: dict[tuple[str, str], Forecasts] = {}
    for way in found.forecasts:
        if way["path"] == path and way["reason"]:
            groups.setdefault((way["reason"], way["runtime"]), []).append(way)
    return groups


def _limited(found: Examination) -> str:
    names = (name for group in found.limits for name in group.functions)
    return ", ".join(dict.fromkeys(names))


def _total(ways: Forecasts) -> int:
    count: int = sum(way["count"] for way in ways)
    return count


def _made(ways: Forecasts) -> str:
    count = _total(ways)
    return f"{count} forecast{'s were' if count > 1 else ' was'} made"


def _places(ways: Forecasts) -> str:
    return ", ".join(dict.fromkeys(way["place"] for way in ways))
