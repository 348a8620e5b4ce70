"""An A/B comparison as a self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import jinja2

from toto_compile_patch.tools.ab import words
from toto_compile_patch.tools.ab.figures import Figures
from toto_compile_patch.tools.ab.picture import Look, draw

TEMPLATE = Path(__file__).with_name("page.html.j2")

NARROW_SCREEN = "(max-width: 640px)"
DARK_SCREEN = "(prefers-color-scheme: dark)"

SCREENS = {
    f"{DARK_SCREEN} and {NARROW_SCREEN}": Look(narrow=True, dark=True),
    DARK_SCREEN: Look(dark=True),
    NARROW_SCREEN: Look(narrow=True),
    "all": Look(),
}
"""Looks by the screen that they are for; a browser shows the first that fits."""


def pictures_of(figures: Figures) -> dict[str, bytes]:
    """Pictures as SVG, by the screens that they are for."""
    return {screen: draw(figures, look) for screen, look in SCREENS.items()}


def page(figures: Figures, pictures: Mapping[str, bytes]) -> str:
    """The page, with ``pictures_of`` the figures in it."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        headline=words.headline(figures),
        subject=words.subject(figures),
        verdicts=words.verdicts(figures),
        remarks=words.remarks(figures),
        setting=figures.setting,
        tables=words.tables(figures),
        pictures={
            screen: base64.b64encode(picture).decode() for screen, picture in pictures.items()
        },
        alternative=words.alternative(figures),
    )
