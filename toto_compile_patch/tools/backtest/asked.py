"""What is to be done with which file; known, and the whole file checked, without torch."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from toto_compile_patch.tools.backtest.columns import columns_of
from toto_compile_patch.tools.backtest.job import Job, job_of
from toto_compile_patch.tools.backtest.place import Place
from toto_compile_patch.tools.backtest.survey import Plan, survey
from toto_compile_patch.tools.series.layout import Layout
from toto_compile_patch.tools.series.reader import Reader
from toto_compile_patch.tools.series.tables import identity, open_table


class Asked(NamedTuple):
    """What was asked for.

    Attributes:
        job: device and threads, as far as the options name them.
        file: what tells one state of the file from another.
        reader: of the file.
        plan: how much work there is; None: that of the run that goes on.
    """

    job: Job
    file: dict[str, Any]
    reader: Reader
    plan: Plan | None


def asked_by(options: argparse.Namespace) -> Asked:
    """What the options ask for.

    Raises:
        UsageError: the file cannot be read, or not be forecast.
    """
    job, file = job_of(options), identity(options.file)
    layout = Layout(open_table(options.file), job.wanted)
    reader = Reader(layout, columns_of(layout, job))
    goes_on = options.resume and Place(options.output).manifest() is not None
    return Asked(job, file, reader, None if goes_on else survey(reader, options.file, job))
