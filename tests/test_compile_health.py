"""Compile health of a 12-layer model, patched against upstream measured in the same run."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from toto_cases import COMPILE_PATCHES, PATCH, forecast, series, small_model

import toto_compile_patch
from toto_compile_patch.tools.compile_health import CompileHealth

COUNT = Path(__file__).parent.parent / ".ci" / "evidence" / "compilations.py"


@pytest.mark.slow
def test_half_of_upstreams_and_nothing_for_what_was_seen(tmp_path: Path) -> None:
    figures = tmp_path / "health.json"
    subprocess.run(
        [sys.executable, COUNT, "--small", "--backend", "eager", "--json", figures], check=True
    )
    results = json.loads(figures.read_text())
    upstream, patched = (results[side]["first"] for side in ("upstream", "patched"))
    for count in ("graphs", "graph_breaks", "recompilations"):
        assert patched[count] <= upstream[count] / 2
    nothing = dict.fromkeys(
        ("graphs", "graph_breaks", "recompilations", "limit_hits", "cudagraph_skips"), 0
    )
    for stage in ("again", "unseen length"):
        assert {name: results["patched"][stage][name] for name in nothing} == nothing


def forecasts_of_several_shapes(model: Any) -> None:
    for length in (40, 48, 80):
        forecast(model, series(length), 3 * PATCH)
        forecast(model, series(length), PATCH, samples=4, per_batch=2)
        forecast(model, series(length, variates=2), 2 * PATCH, samples=4, per_batch=2)


def test_no_limit_is_hit_and_nothing_is_compiled_against_the_cache() -> None:
    torch._dynamo.reset()
    toto_compile_patch.apply(COMPILE_PATCHES)
    model = torch.compile(
        small_model(num_layers=6, spacewise_every_n_layers=3).model, backend="eager"
    )
    with CompileHealth() as health:
        forecasts_of_several_shapes(model)
    assert health.limit_hits == 0
    for recompilation in health.recompilations:
        condition = recompilation.reason.split("#")[0]
        assert "kv_cache" not in condition
        assert "_current_idx" not in condition
        assert "layer_idx" not in condition
    for frame, guards in guards_by_frame().items():
        for guard in guards:
            assert "kv_cache" not in guard, frame
            assert "_current_idx" not in guard, frame
    with CompileHealth() as health:
        forecasts_of_several_shapes(model)
    assert health.counts() == dict.fromkeys(health.counts(), 0)


def guards_by_frame() -> dict[str, list[str]]:
    """The guards of everything that is compiled now."""
    from torch._C._dynamo.eval_frame import (  # type: ignore[import-not-found]
        _debug_get_cache_entry_list,
    )

    found: dict[str, list[str]] = defaultdict(list)
    tracker = torch._dynamo.convert_frame.input_codes
    for code in filter(None, (reference() for reference in tracker.seen)):
        for entry in _debug_get_cache_entry_list(code):
            found[code.co_name] += entry.guard_manager.code_parts
    return found


def test_what_else_torch_logs_is_no_event() -> None:
    limit = (
        "torch._dynamo hit config.recompile_limit (8)\n   function: 'f' (a.py:3)\n   last reason: "
    )
    with CompileHealth() as health:
        for name in ("symbolic_convert.__graph_breaks", "convert_frame.__graph_breaks"):
            logging.getLogger(f"torch._dynamo.{name}").debug("something else")
        for said in ("something else", f"{limit}x == 3"):
            logging.getLogger("torch._dynamo.convert_frame").warning(said)
        for said in ("something else", "skipping cudagraphs due to cpu device\n\n"):
            logging.getLogger("torch._inductor.cudagraph_utils.__perf_hints").warning(said)
    assert health.breaks == []
    assert [(event.place, event.reason) for event in health.limits] == [
        (("a.py", 3, "f"), "x == 3")
    ]
    assert health.skips == ["skipping cudagraphs due to cpu device"]


@pytest.mark.slow
def test_health_is_the_same_in_a_worker_thread() -> None:
    torch._dynamo.reset()
    toto_compile_patch.apply(COMPILE_PATCHES)
    counts = []

    def run() -> None:
        model = small_model().model
        model.compile(backend="eager")
        with CompileHealth() as health:
            forecast(model, series(40), 3 * PATCH)
            forecast(model, series(48), 3 * PATCH)
        counts.append(health.counts())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    torch._dynamo.reset()
    run()
    assert counts[0] == counts[1]
    assert counts[0]["limit_hits"] == 0
