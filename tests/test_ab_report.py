"""``ab``: what its page, its picture and its words show, and when there is too little to judge."""

from __future__ import annotations

import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ab_cases import DATE, figures_of
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from toto_compile_patch.tools.ab.figures import Figures
from toto_compile_patch.tools.ab.judgement import Judgement, judge, judge_means
from toto_compile_patch.tools.ab.page import SCREENS, page, pictures_of
from toto_compile_patch.tools.ab.picture import ALONE, Look, compose, draw, styled
from toto_compile_patch.tools.ab.words import headline, remarks, show, subject, verdicts
from toto_compile_patch.tools.turns import QUANTILES
from toto_compile_patch.tools.windows import Window
from toto_compile_patch.tools.wording import counted

LONG = "Netzlast <b>Süd</b> & $x^2$ 電力 " * 4 + "x"
PICTURE = {"all": b"<svg/>"}
UNBROKEN = f"{'überlang_' * 12}.csv"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each, of a page that is put together rightly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [
            found[name] or ""
            for found_tag, found in self.tags
            if found_tag == tag and name in found
        ]


def test_the_page_says_what_it_shows(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    found = Page(page(figures, PICTURE))
    assert found.texts["h1"] == [headline(figures)]
    assert "the same forecast" in found.texts["h1"][0]
    assert headline(figures) in found.texts["title"][0]
    for text in (found.texts["title"][0], found.texts["p"][0]):
        assert "load of a.csv, by the demo model" in text
    (alternative,) = found.attributes("img", "alt")
    for said in (headline(figures), "load", "patched 1 s", "in the unit of load"):
        assert said in alternative
    assert DATE in found.texts["dd"]


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, windows=1, samples=0)
    found = Page(page(figures, pictures_of(figures)))
    sources = [*found.attributes("img", "src"), *found.attributes("source", "srcset")]
    assert len(sources) == len(SCREENS)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert len(set(sources)) == len(SCREENS)
    assert not [tag for tag, _ in found.tags if tag in ("script", "link", "iframe", "a")]
    assert "url(" not in found.texts["style"][0]


def test_a_cell_of_a_table_names_its_column(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    found = Page(page(figures, PICTURE))
    assert set(found.attributes("td", "data-label")) == {
        *("median s", "p95 s", "times faster", "first + s", "peak GB"),
        *("MAE", "MASE", "CRPS", "80% holds", "from upstream"),
    }
    assert [text for text in found.texts["th"] if text == "patched"]
    assert "in the column's unit" in " ".join(found.texts["p"])


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    html = page(figures_of(tmp_path, columns=(LONG,), source="<i>.csv"), PICTURE)
    found = Page(html)
    assert not [tag for tag, _ in found.tags if tag in ("b", "i")]
    assert "<i>.csv" in found.texts["title"][0]
    assert LONG.strip() in found.texts["dd"][0]


@pytest.mark.parametrize(
    ("case", "classes", "says"),
    [
        ({}, ["", "", ""], "the same forecast"),
        ({"shift": 0.5}, ["", "", "bad"], "NOT the same forecast"),
        ({"mean_shift": 0.01}, ["", "bad", ""], "NOT the same forecast"),
        ({"windows": 1, "samples": 8}, ["", "", "open"], "too little to tell"),
        ({"windows": 1, "samples": 0}, ["", ""], "the same forecast"),
        ({"path": "upstream's code (a hook)"}, ["", "bad", "", ""], "the same forecast"),
    ],
)
def test_verdicts_stand_on_top(
    case: dict[str, Any], classes: list[str], says: str, tmp_path: Path
) -> None:
    figures = figures_of(tmp_path, **case)
    found = Page(page(figures, PICTURE))
    shown = [attributes.get("class") or "" for tag, attributes in found.tags if tag == "li"]
    # Of two sides that take as long as each other, neither is faster.
    assert shown == ["bad", *classes[1:]]
    assert says in found.texts["h1"][0]
    names = [tag for tag, _ in found.tags]
    assert names.index("ul") < names.index("picture")
    for verdict, text in zip(verdicts(figures), found.texts["li"], strict=True):
        assert text == f"{verdict.claim} {verdict.detail}"


CASES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "one window": {"windows": 1},
    "one step": {"horizon": 1, "windows": 5},
    "means": {"samples": 0},
    "long names": {"columns": (LONG, "price"), "source": UNBROKEN},
}


@pytest.mark.parametrize("look", [ALONE, Look(narrow=True)])
@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_picture_is_cut_off(case: str, look: Look, tmp_path: Path) -> None:
    figures = figures_of(tmp_path, **CASES[case])
    with styled(figures, look):
        figure = compose(figures, look)
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        boxes = {text.get_text(): text.get_window_extent() for text in _texts(figure)}
    for said, box in boxes.items():
        assert min(box.x0, box.y0) >= 0, said
        assert box.x1 <= width, said
        assert box.y1 <= height, said


def _texts(figure: Figure) -> list[Text]:
    """All but the ticks', of which some are out of sight."""
    ticks = [
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in axis.get_ticklabels(which="both")
    ]
    texts: list[Any] = figure.findobj(Text)
    return [text for text in texts if text.get_text() and text not in ticks]


def test_a_picture_alone_says_what_it_shows(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    with styled(figures, ALONE):
        said = " ".join(text.get_text() for text in _texts(compose(figures, ALONE)))
    for wanted in (headline(figures), "load of a.csv, by the demo", "torch 2.7.0", DATE):
        assert wanted in said
    assert draw(figures).startswith(b"\x89PNG")


def test_a_forecast_of_one_step_is_drawn(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, horizon=1)
    with styled(figures, ALONE):
        upstream = compose(figures, ALONE).axes[0]
    (interval,) = upstream.containers
    assert interval.get_label() == "upstream, 10 to 90%"
    markers = {line.get_label(): line.get_marker() for line in upstream.lines}
    assert markers["actual"] == "D"
    assert markers["upstream, median"] == "o"


@pytest.mark.parametrize("face", [{"family": "STIXGeneral"}, {"style": "oblique"}])
def test_letters_that_the_usual_font_lacks_are_drawn_by_another(
    face: dict[str, Any], tmp_path: Path
) -> None:
    usual = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    other = font_manager.get_font(font_manager.findfont(font_manager.FontProperties(**face)))
    more = sorted(other.get_charmap().keys() - usual.get_charmap().keys())
    letter = next(chr(code) for code in more if chr(code).isalpha())
    figures = figures_of(tmp_path, columns=(f"load {letter}",))
    with styled(figures, ALONE), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        compose(figures, ALONE).draw_without_rendering()


def said_on_screen(figures: Figures) -> str:
    console = Console(width=80, record=True, quiet=False)
    with console.capture() as capture:
        show(figures, console)
    return " ".join(capture.get().split())


def test_too_little_is_no_verdict(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, windows=1, samples=8)
    assert figures.judgement.same is None
    assert figures.as_json()["same"] is None
    needed = figures.judgement.samples_needed
    screen = said_on_screen(figures)
    assert "too little to judge samples by: in 1 window of 8 samples" in screen
    assert f"ask for --samples {needed}" in screen
    assert figures_of(tmp_path, windows=1, samples=needed).judgement.same is True


def test_a_difference_is_seen_however_few_samples_there_are(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, windows=1, samples=8, shift=5.0)
    assert figures.judgement.same is False


def test_means_are_judged_by_one_window(tmp_path: Path) -> None:
    assert figures_of(tmp_path, windows=1, samples=0).judgement.same is True
    assert figures_of(tmp_path, windows=1, samples=0, mean_shift=0.01).judgement.same is False
    assert figures_of(tmp_path, windows=1, samples=8, mean_shift=0.01).judgement.same is False


@pytest.mark.parametrize(("windows", "horizon"), [(1, 96), (4, 1), (4, 96), (16, 1)])
@pytest.mark.parametrize("samples", [8, 64])
def test_the_smallest_shift_said_to_be_seen_is_seen(
    windows: int, horizon: int, samples: int
) -> None:
    generator = np.random.default_rng(0)
    # From 10 to 90 % of Student's t with three degrees of freedom.
    width, seen = 3.28, 0
    for _ in range(100):
        drawn = generator.standard_t(3, (3, windows, 1, horizon, samples))
        one, two, three = np.moveaxis(np.quantile(drawn, QUANTILES, axis=-1), 0, 2)
        judgement = judge(one, two, three, samples, (0.0, True))
        shifted = two + judgement.smallest_seen * width
        seen += judge(one, shifted, three, samples, (0.0, True)).same is False
    assert seen >= 85


def test_chance_that_explains_little_is_enough() -> None:
    assert Judgement(0.0, True, 0.05, 0.05, 0.13, 128).same is True
    assert Judgement(0.0, True, 0.05, 0.05, 0.14, 128).same is None
    assert Judgement(0.0, True, 0.15, 0.05, 0.14, 128).same is False


def test_rounding_of_a_series_that_hardly_moves_is_no_difference() -> None:
    known = 1.2e-5 + 4e-8 * np.sin(np.arange(50))
    still = Window(
        values=known[None].astype(np.float32),
        observed=np.ones((1, 50), bool),
        seconds=np.arange(50),
        interval=1,
        truth=np.array([[1.2e-5]]),
    )
    # Upstream's scaler does not resolve so little: its forecast is nowhere near.
    mean = np.array([[[1.6e-3]]])
    assert judge_means(mean, mean + 7e-8, [still])[1]
    assert not judge_means(mean, mean + 7e-6, [still])[1]


def test_a_series_that_hardly_moves_is_remarked_upon(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    assert not [text for text in remarks(figures) if "too little" in text]
    figures.sides[0].means[:] = [mean + 1000 for mean in figures.sides[0].means]
    assert [text for text in remarks(figures) if "load moves too little for this model" in text]


def test_time_that_others_took_is_remarked_upon(tmp_path: Path) -> None:
    figures = figures_of(tmp_path)
    assert not [text for text in remarks(figures) if "stolen" in text]
    said = remarks(replace(figures, stolen=0.2))
    assert [text for text in said if text.startswith("20% of the processor's time was stolen")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [("abc", "a, b, c of"), ("abcd", "a, b, c, 1 other column of"), ("abcde", "2 other columns")],
)
def test_of_many_columns_the_first_are_named(columns: str, said: str, tmp_path: Path) -> None:
    assert said in subject(figures_of(tmp_path, windows=1, samples=0, columns=tuple(columns)))


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 windows"), (1, "1 window"), (3, "3 windows"), (1000, "1,000 windows")],
)
def test_numbers_in_words(number: int, said: str) -> None:
    assert counted(number, "window") == said
