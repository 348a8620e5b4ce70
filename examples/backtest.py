"""Rolling-origin backtest: the same windows by upstream's code, eager and compiled, and patched.

One line forecasts them all: one after the other, or, patched, those of one shape together.

python examples/backtest.py --samples 0         # mean forecasts, which involve no chance
python examples/backtest.py --csv load.csv --column MW --context 2048 --horizon 168
TOTO_COMPILE_PATCH=0 python examples/backtest.py                        # upstream alone
"""

import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import BUNDLED, Parser, Window, describe
from toto.inference.forecaster import TotoForecaster

import toto_compile_patch
from toto_compile_patch.settings import COMPILE_MODES
from toto_compile_patch.tools.compile_health import CompileHealth

EAGER, COMPILED, PATCHED = "upstream, eager", "upstream, compiled", "patched"
NOTHING = "TOTO_COMPILE_PATCH=0: upstream runs untouched, nothing is patched"
IN_TURNS = "one ran after the other: how much faster, taking turns, says toto-compile-patch ab"
LINE = "{way}: {seconds:.3g} s a window, first {first_seconds:.3g} s, error {error:.4g}; {health}"


def main() -> None:
    parser = Parser(__doc__, windows=8, context=512, horizon=96)
    parser.add_argument("--csv", type=Path, default=BUNDLED)
    parser.add_argument("--column", default="temp")
    parser.add_samples(64)
    parser.add_argument("--compile", choices=COMPILE_MODES, default="reduce-overhead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.samples_per_batch = parser.samples_per_batch(options)
    windows = parser.read_windows(options, options.csv, options.column)
    toto_compile_patch.apply()
    standing = [row.name for row in toto_compile_patch.status() if row.state == "applied"]
    print(f"model: {describe(options.model)}\npatches: {', '.join(standing) or NOTHING}")
    ways = []
    for way in (EAGER, COMPILED, PATCHED) if standing else (EAGER, COMPILED):
        toto_compile_patch.apply() if way == PATCHED else toto_compile_patch.revert()
        forecaster = TotoForecaster(parser.load_model(options).model)
        if way == COMPILED or (way == PATCHED and "fast_decode" not in standing):
            forecaster.model.compile(mode=options.compile)
        ways.append({"way": way, **backtest(forecaster, windows, options)})
        print(LINE.format_map(ways[-1]))
    if standing:
        print(IN_TURNS)
    if options.json:
        options.json.write_text(json.dumps({"patches": standing, "ways": ways}, indent=2) + "\n")


def backtest(forecaster: Any, windows: list[Window], options: Namespace) -> dict[str, Any]:
    """Seconds and mean absolute error of the forecasts, and what was compiled for them."""

    def errors(windows: list[Window]) -> list[Any]:
        inputs = (window.inputs().to(forecaster.model.device) for window in windows)
        numbers = (options.horizon, options.samples or None, options.samples_per_batch)
        made = toto_compile_patch.forecast_many(forecaster, inputs, *numbers)
        points = [each.median if options.samples else each.mean for each in made]
        pairs = zip(points, windows, strict=True)
        return [abs(point[0].cpu().numpy() - window.truth) for point, window in pairs]

    with CompileHealth() as health:
        started = time.perf_counter()
        # Compiles, and prepares the weights.
        errors(windows[:1])
        first = time.perf_counter()
        error = float(np.nanmean(errors(windows)))
        seconds = (time.perf_counter() - first) / len(windows)
    facts = {"first_seconds": first - started, "seconds": seconds}
    return {**facts, "error": error, "health": health.counts()}


if __name__ == "__main__":
    main()
