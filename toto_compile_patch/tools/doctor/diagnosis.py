"""From what was seen of a script to what is wrong with it, in plain words, with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from toto_compile_patch.settings import ENV_TOGGLE
from toto_compile_patch.tools.doctor.examination import Examination
from toto_compile_patch.tools.doctor.findings import (
    Finding,
    compiling_switched_off,
    failure,
    finding,
)
from toto_compile_patch.tools.wording import counted

_READS_OF_THE_CACHE = ("KVCache.", "BaseMultiheadAttention.positional_embedding")
_OFF = ("0", "false", "no", "off")
_LONG_COMPILING = 10.0
"""Seconds of compiling that nobody would ask about."""

Forecasts: TypeAlias = "list[dict[str, Any]]"
"""Forecasts that were made alike, and how many (``count``)."""


def diagnose(found: Examination, set_too_late: list[str], countable: bool) -> Iterator[Finding]:
    """All that is to be said, the gravest first.

    Args:
        found: what was seen.
        set_too_late: environment variables set after dynamo had read its own.
        countable: whether forecasts of unpatched code could be seen.
    """
    if found.error:
        yield failure(found.error)
    elif found.exit_code:
        yield finding("exit code", code=found.exit_code)
    yield from _unreached(found)
    of_compiling = [*_nothing_compiled(found), *_falls_to_pieces(found)]
    yield from of_compiling
    yield from _unpatched(found, said=bool(of_compiling))
    yield from _fallbacks(found)
    if found.limits and not any(_falls_to_pieces(found)):
        yield finding("recompile limit", functions=_limited(found))
    yield from _long_compiling(found)
    for name in set_too_late:
        option = name.removeprefix("TORCHDYNAMO_").lower()
        yield finding("set too late", variable=name, option=option)
    yield from compiling_switched_off(found.variables, "problem")
    yield from _notes(found)
    if not countable:
        yield finding("not countable")
    elif not found.forecasts:
        yield finding("no forecast")


def _unreached(found: Examination) -> Iterator[Finding]:
    """Forecasts by code that apply() does not reach, or such code where no other forecast is."""
    for carrier in found.unreached:
        ways = [way for way in found.forecasts if way["carrier"] == carrier["name"]]
        if ways:
            seen = {"made": _made(ways), "places": _places(ways)}
            yield finding("forecasts out of reach", **carrier, **seen)
        else:
            level = "note" if found.forecasts else "problem"
            yield finding("loaded out of reach", level=level, **carrier)


def _nothing_compiled(found: Examination) -> Iterator[Finding]:
    """Somebody asked for compiling, and no forecast was asked of a compiled model."""
    if not found.calls or not found.forecasts or any(way["compiled"] for way in found.forecasts):
        return
    lines = {_line_of(call): f"at {call['place']}: {_why_nothing(call)}" for call in found.calls}
    why = "; ".join(f"{line} {rest}" for line, rest in lines.items())
    yield finding("nothing compiled, fast" if _fast(found) else "nothing compiled", why=why)


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
    listed = sum(group.count for group in found.breaks)
    seen = {"reads": reads, "listed": counted(listed, "listed break"), "limit": limit}
    yield finding("falls to pieces", **found.counts_in_words, **seen)


def _unpatched(found: Examination, said: bool) -> Iterator[Finding]:
    """Forecasts that no patch was there for: all of them, unless that was said, or some."""
    early, fast = [way for way in found.forecasts if _is_unpatched(way)], _fast(found)
    if early and fast:
        before = early[0]["first"] < min(way["first"] for way in fast)
        when = "before apply()" if before else "after revert()"
        yield finding("partly unpatched", made=_made(early), when=when, places=_places(early))
    elif early and not said:
        off = found.variables.get(ENV_TOGGLE, "").strip().lower() in _OFF
        name = "unpatched, toggled off" if off else "unpatched"
        yield finding(name, made=_made(early), variable=ENV_TOGGLE)


def _fallbacks(found: Examination) -> Iterator[Finding]:
    fallbacks = _by_reason(found, "upstream").items()
    for (reason, _), ways in sorted(fallbacks, key=lambda item: -_total(item[1])):
        cure = ways[0]["cure"] or "see 'The patches' in the README"
        seen = {"made": _made(ways), "places": _places(ways)}
        yield finding("fallback", reason=reason, cure=cure, **seen)


def _long_compiling(found: Examination) -> Iterator[Finding]:
    """Compiling that took long, and longer than all that it was for."""
    seconds = found.seconds
    if not seconds or not found.forecasts:
        return
    if seconds["compiling"] > max(_LONG_COMPILING, seconds["forecasting"]):
        on_a_cpu = any(way["device"] == "cpu" for way in found.forecasts)
        yield finding("long compiling on a CPU" if on_a_cpu else "long compiling", **seconds)


def _notes(found: Examination) -> Iterator[Finding]:
    """What is in nobody's way: autocast, other runtimes than asked for, graphs not captured."""
    if ways := [way for way in found.forecasts if way["autocast"]]:
        yield finding("autocast", made=_made(ways), device=ways[0]["autocast"])
    for (reason, runtime), ways in _by_reason(found, "fast").items():
        yield finding("other runtime", made=_made(ways), runtime=runtime, reason=reason)
    for reason, count in found.skips.items():
        cure = "on a CPU: mode='default'" if "cpu device" in reason else ""
        graphs = counted(count, "graph")
        yield finding("no CUDA graph", graphs=graphs, reason=reason, cure=cure)


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


def _made(ways: Forecasts) -> str:
    count = _total(ways)
    return f"{counted(count, 'forecast')} {'was' if count == 1 else 'were'} made"


def _total(ways: Forecasts) -> int:
    return sum(int(way["count"]) for way in ways)


def _places(ways: Forecasts) -> str:
    return ", ".join(dict.fromkeys(way["place"] for way in ways))
