"""An A/B comparison as a self-contained page."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from toto_compile_patch.tools.ab import report
from toto_compile_patch.tools.ab.figures import Figures

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def page(figures: Figures, picture: bytes) -> str:
    """The page, with the picture in it.

    Args:
        figures: what was measured.
        picture: as PNG.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        verdicts=report.verdicts(figures),
        same=figures.judgement.same,
        faster=report.ratio(figures.speeds[-1].ratio),
        setting=figures.setting,
        tables=[report.speed_rows(figures), report.accuracy_rows(figures)],
        legends=report.LEGENDS,
        remarks=report.remarks(figures),
        picture=base64.b64encode(picture).decode(),
    )
