"""The report is one self-contained HTML file with escaped text, and figures are images."""

from __future__ import annotations

import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from harness.core.errors import OutOfRange
from harness.core.types import Ineligible, Score, Source
from harness.pipeline.leaderboard import build
from harness.pipeline.rows import MetricFacts, Row
from harness.report import plots
from harness.report.elements import Cell, Figure, ReportTable
from harness.report.page import write_report
from harness.report.plots.scores import colour_range
from harness.report.wording import verdict

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "hr", "input", "link"}


class _Page(HTMLParser):
    """Elements, attributes and text of a page; fails if tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def _row(name: str, mean: float, *flags: str, subjects: int = 6) -> Row:
    values = {f"sub-{index}": {0: mean + 0.01 * (index % 3)} for index in range(subjects)}
    facts = {"profile": "quick", "command": f"harness run sequences={name}", "spacing_mm": [1.0, 1.0, 2.0]}
    return Row(name, {"sequences": name}, values={"dice": values}, facts=facts, flags=flags)


@pytest.fixture
def table() -> pa.Table:
    """Two ranked rows and a collapsed one whose name contains HTML."""
    metric = MetricFacts("dice", "higher", (0, 1), source="Dice 1945", summary="overlap of two masks")
    rows = [_row("T2w", 0.7), _row("FLAIR", 0.5), _row(HOSTILE, 0.1, "collapsed in 2 of 6 folds")]
    return build(rows, [metric], "dice")


def _page(path: Path, table: pa.Table, **options: object) -> _Page:
    arguments = {"title": "Which?", "question": "Why?", "source": Source("A et al.", 2023), "verdict": verdict(table)}
    return _Page(write_report(path, **{**arguments, "leaderboard": table, **options}).read_text())  # type: ignore[arg-type]


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "png")
    return buffer.getvalue()


class TestReport:
    """The HTML page."""

    def test_parses(self, table: pa.Table, tmp_path: Path) -> None:
        """Every opened tag is closed."""
        assert _page(tmp_path / "r" / "index.html", table).open == []

    def test_verdict(self, table: pa.Table, tmp_path: Path) -> None:
        """The page contains the verdict."""
        assert verdict(table) in _page(tmp_path / "index.html", table).text

    def test_intervals(self, table: pa.Table, tmp_path: Path) -> None:
        """Values are shown with their intervals."""
        assert "0.71 [0.70, 0.72]" in _page(tmp_path / "index.html", table).text

    def test_escapes(self, table: pa.Table, tmp_path: Path) -> None:
        """HTML in any text is escaped."""
        page = _page(
            tmp_path / "index.html",
            table,
            title=HOSTILE,
            question=HOSTILE,
            notes=[HOSTILE],
            provenance={HOSTILE: HOSTILE},
            ineligible=[Ineligible(HOSTILE, HOSTILE)],
            figures=[Figure(HOSTILE, HOSTILE, _png())],
        )
        assert page.tags("script") == []
        # Title, heading, question, note; row, and how it was computed: row, command, identity; provenance,
        # left out, and figure: two each.
        assert page.text.count(HOSTILE) == 4 + 1 + 3 + 6

    def test_every_text_is_escaped(self, tmp_path: Path) -> None:
        """Subjects, regions, targets, columns of the data, metrics and notes come from users and their files."""
        metric = MetricFacts(HOSTILE, "higher", (0, 1), unit=HOSTILE, source=HOSTILE, summary=HOSTILE)
        values = {HOSTILE: {f"{HOSTILE}{number}": {0: 0.1 * number} for number in range(6)}}
        axes, facts = {f"axis {HOSTILE}": HOSTILE}, {f"fact {HOSTILE}": HOSTILE}
        row = Row(HOSTILE, axes, values=values, facts=facts, flags=(HOSTILE,))
        board = build([row], [metric], HOSTILE)
        folded = ReportTable(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE)
        lines = (Cell(HOSTILE, range=HOSTILE), Cell(HOSTILE, flag=True), Cell(HOSTILE, link='"><script>'))
        tables = [ReportTable(HOSTILE, (HOSTILE,) * 3, (lines,), HOSTILE, section=HOSTILE, folded=folded)]
        more = {"by_target": {HOSTILE: (board, board)}, "explanations": board, "tables": tables, "run": HOSTILE}
        texts = {"title": HOSTILE, "question": HOSTILE, "source": HOSTILE, "verdict": HOSTILE, "notes": [HOSTILE]}
        page = _page(tmp_path / "index.html", board, shown=(HOSTILE,), **more, **texts)
        known = {"html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "div", "a"}
        known |= {"nav", "section", "table", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "ul"}
        known |= {"li", "dl", "dt", "dd", "code"}
        assert {tag for tag, _ in page.elements} <= known
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert page.text.count(HOSTILE) > 30
        assert [one["href"] for one in page.tags("a") if not str(one["href"]).startswith("#")] == [
            "../index.html",
            '"><script>',
        ]

    def test_attributes_are_escaped(self, table: pa.Table, tmp_path: Path) -> None:
        """Quotation marks in attributes are escaped."""
        page = _page(tmp_path / "index.html", table, figures=[Figure('" onerror="x', "", _png())])
        assert [image["alt"] for image in page.tags("img")] == ['" onerror="x']
        assert all("onerror" not in image for image in page.tags("img"))

    def test_loads_nothing(self, table: pa.Table, tmp_path: Path) -> None:
        """No element loads anything from outside the file."""
        hostile_svg = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
        figures = [Figure("one", "", _png()), Figure("two", "", hostile_svg)]
        page = _page(tmp_path / "index.html", table, figures=figures, source="https://example.org/paper")
        loaded = [
            str(value)
            for _, attributes in page.elements
            for name, value in attributes.items()
            if name in ("src", "href") and not str(value).startswith("#")
        ]
        assert [source.partition(";")[0] for source in loaded] == ["data:image/png", "data:image/svg+xml"]
        assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
        assert "url(" not in (tmp_path / "index.html").read_text()
        assert "@import" not in (tmp_path / "index.html").read_text()

    def test_unranked_rows_have_a_separate_class(self, table: pa.Table, tmp_path: Path) -> None:
        """A collapsed row has a separate class and shows its flag."""
        page = _page(tmp_path / "index.html", table)
        assert [row["class"] for row in page.tags("tr") if "class" in row] == ["group", "ranked", "unranked divider"]
        assert "collapsed in 2 of 6 folds" in page.text

    def test_glossary(self, table: pa.Table, tmp_path: Path) -> None:
        """Each metric is explained with direction and source, in the glossary and in the table header."""
        page = _page(tmp_path / "index.html", table)
        assert "overlap of two masks higher 0 to 1 – – mean of subjects Dice 1945" in page.text
        assert "overlap of two masks; higher is better; Dice 1945" in [cell.get("title") for cell in page.tags("th")]

    def test_commands_of_rows(self, table: pa.Table, tmp_path: Path) -> None:
        """The page contains the command and voxel size of each row."""
        text = _page(tmp_path / "index.html", table).text
        assert "harness run sequences=FLAIR" in text
        assert "[1.0, 1.0, 2.0]" in text

    def test_left_out(self, table: pa.Table, tmp_path: Path) -> None:
        """Subjects left out are counted and named."""
        text = _page(tmp_path / "index.html", table, ineligible=[Ineligible("sub-09", "no FLAIR")]).text
        assert "1 subject without data that the task requires. subject reason sub-09 no FLAIR" in text

    def test_explanations(self, table: pa.Table, tmp_path: Path) -> None:
        """Attribution methods are in a separate table."""
        rows = [
            Row("c", {"model": "m"}, name, {"auc": {f"s{i}": {0: value + 0.01 * i} for i in range(6)}})
            for name, value in (("occlusion", 0.5), ("random", 0.1))
        ]
        explained = build(rows, [MetricFacts("auc")], "auc")
        text = _page(tmp_path / "index.html", table, explanations=explained).text
        assert text.index("Explanations") < text.index("occlusion") < text.index("random")

    def test_sections_in_order(self, table: pa.Table, tmp_path: Path) -> None:
        """Tables and figures are in the sections that they name, with explanations last."""
        figures = [Figure("one", "", _png(), section="Explanations"), Figure("two", "", _png(), section="Detection")]
        report_tables = [ReportTable("claims", ("id",), (("D1",),), section="Leaderboard")]
        page = _page(tmp_path / "index.html", table, figures=figures, tables=report_tables)
        anchors = [section["id"] for section in page.tags("section")]
        assert anchors == ["leaderboard", "detection", "explanations", "metrics"]
        assert page.text.index("claims") < page.text.index("Detection two") < page.text.index("Explanations one")
        assert [link["href"] for link in page.tags("a")] == [f"#{anchor}" for anchor in anchors]

    def test_report_tables(self, table: pa.Table, tmp_path: Path) -> None:
        """A table has marks, notes and a longer folded table, and all text is escaped."""
        more = ReportTable("all of it", ("id", "n"), (("D1", "7"),))
        line = ("D1", Cell("supported", range="7 of 7", mark="good"), HOSTILE)
        report_table = ReportTable("claims", ("id", "here", HOSTILE), (line,), note=HOSTILE, folded=more)
        page = _page(tmp_path / "index.html", table, tables=[report_table])
        assert page.tags("script") == []
        assert "D1 supported 7 of 7" in page.text
        assert [span["class"] for span in page.tags("span") if "mark" in str(span["class"])] == ["mark good"]
        assert "all of it id n D1 7" in page.text

    def test_metrics_that_are_not_shown_are_folded(self, tmp_path: Path) -> None:
        """Metrics that are not shown by default are in a folded table."""
        values = {name: {f"s{i}": {0: 0.5 + 0.01 * i} for i in range(6)} for name in ("auc", "dice", "bias", "count")}
        board = build([Row("c", {"m": "a"}, values=values)], [MetricFacts(name) for name in values], "dice")
        page = _page(tmp_path / "index.html", board, shown=("count", "dice", "auc", "absent"))
        text = page.text
        first, fold = text.index("configuration rank status dice difference count auc"), text.index("All 4 metrics")
        assert first < fold < text.index("configuration dice auc bias count")

    def test_page_without_results(self, tmp_path: Path) -> None:
        """Without any result, the page states that there is none."""
        text = _page(tmp_path / "index.html", build([], [MetricFacts("dice")], "dice")).text
        assert "No configuration has a result yet." in text

    def test_same_bytes(self, table: pa.Table, tmp_path: Path) -> None:
        """Equal results give identical pages."""
        for name in ("a.html", "b.html"):
            _page(tmp_path / name, table, figures=[Figure("dice", "", plots.objective_intervals(table))])
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


TRUTH = {"T2w": [100.0, 250.0, 300.0], "FLAIR": [100.0, 250.0, 300.0]}
FOUND = {"T2w": [90.0, 260.0, 280.0], "FLAIR": [10.0, 120.0, np.nan]}
VOLUME = np.random.default_rng(0).normal(size=(12, 16, 5))
MASK = np.zeros((12, 16, 5), dtype=bool)
MASK[0:3, 4:7, 2] = True
SHARES = {"T2w": Score(0.5, 0.4, 0.6, 6), "FLAIR": Score(-0.1, np.nan, np.nan, 1)}
SPACING = (1.0, 1.5, 3.0)
CURVE = {0.0: Score(0.4, 0.3, 0.5, 6, chance=0.0), 3.0: Score(0.9, 0.8, 1.1, 6, chance=0.1)}

PLOTS: dict[str, Callable[[], bytes]] = {
    "bland_altman": lambda: plots.bland_altman(TRUTH, FOUND),
    "truth_scatter": lambda: plots.truth_scatter(TRUTH, FOUND, quantity="volume", unit="ml"),
    "sensitivity_precision": lambda: plots.sensitivity_precision({"T2w": ([0.8, 0.9], [0.7, 0.8]), "none": ([], [])}),
    "subject_lines": lambda: plots.subject_lines({"T2w": {"a": 0.8, "b": 0.7}, "FLAIR": {"a": 0.5}}, quantity="dice"),
    "subject_dots": lambda: plots.subject_dots(
        {"dice": {"sub-01": [0.5, 0.6], "sub-02": []}, "auc": {"sub-01": [0.9]}}
    ),
    "training_curves": lambda: plots.training_curves(
        {"loss": {"fold 0": [3.0, 1.0], "fold 1": [2.0]}, "validation": {}}
    ),
    "channel_bars": lambda: plots.channel_bars(
        [plots.Bars("share", "share", SHARES), plots.Bars("control", "share", {"T2w": SHARES["T2w"]}, muted=True)]
    ),
    "curves": lambda: plots.curves({"sensitivity": {"T2w": CURVE, "FLAIR": CURVE}}, x_label="mm", limits=(0, 1)),
    "grouped_intervals": lambda: plots.grouped_intervals({"adding T2w": SHARES}, x_label="dice", zero=True, chance=0.1),
    "heat_maps": lambda: plots.heat_maps({"dice": {"T2w": SHARES, "FLAIR": {"T2w": Score(np.nan, np.nan, np.nan, 0)}}}),
    "prediction_slices": lambda: plots.prediction_slices(
        {"T2w": VOLUME}, MASK, {"T2w": MASK, "empty": np.zeros_like(MASK)}, spacing_mm=SPACING
    ),
    "picture_maps": lambda: plots.picture_maps(
        {"a": np.linspace(0, 1, 60).reshape(4, 5, 3)},
        {"flat": {"a": np.zeros((4, 5))}, "none": {}},
        {"a": np.eye(4, 5) > 0},
        shape=(4, 5),
    ),
    "attribution_slices": lambda: plots.attribution_slices(
        {"T2w": VOLUME}, {"random": {"T2w": VOLUME}, "flat": {"T2w": np.zeros_like(VOLUME)}}, MASK, spacing_mm=SPACING
    ),
}


class TestPlots:
    """Plots of the report."""

    @pytest.mark.parametrize("name", PLOTS)
    def test_is_a_picture(self, name: str) -> None:
        """Every plot is a PNG image with more than five colours, also with missing values."""
        picture = Image.open(io.BytesIO(PLOTS[name]())).convert("RGB")
        assert len(set(picture.resize((200, 200)).get_flattened_data())) > 5

    def test_every_plot_is_tested(self) -> None:
        """Every plot is in the list of this test module."""
        assert {*PLOTS, "objective_intervals", "Bars"} == set(plots.__all__)

    def test_no_global_figures(self) -> None:
        """Plots leave no figure in pyplot."""
        import matplotlib.pyplot as plt

        before = plt.get_fignums()
        plots.channel_bars([plots.Bars("share", "share", SHARES)])
        assert plt.get_fignums() == before

    def test_unranked_rows_look_different(self, table: pa.Table) -> None:
        """The colour of the best group is used only if rows are ranked."""
        few = build([_row("T2w", 0.7, subjects=3)], [MetricFacts("dice")], "dice")
        blue = (0x00, 0x72, 0xB2)
        shown = [
            blue in Image.open(io.BytesIO(plots.objective_intervals(each))).convert("RGB").get_flattened_data()
            for each in (table, few)
        ]
        assert shown == [True, False]

    def test_slices_keep_their_proportions(self) -> None:
        """A field of 12 × 24 mm is twice as high as wide, whatever its voxel size."""
        flat, nothing = np.zeros((12, 16, 1)), np.zeros((12, 16, 1), dtype=bool)
        png = plots.prediction_slices({"flat": flat}, nothing, {}, spacing_mm=SPACING)
        black = np.asarray(Image.open(io.BytesIO(png)).convert("L")) < 10
        assert black.sum(axis=0).max() / black.sum(axis=1).max() == pytest.approx(2.0, abs=0.1)  # 1.33 in voxels

    @pytest.mark.parametrize(("opaque", "colours"), [(True, 2), (False, 4)])
    def test_equal_values_look_equal_if_the_map_hides_the_image(self, opaque: bool, colours: int) -> None:
        """Two values over dark and bright channels have two colours if opaque, and four if the images shine through."""
        image = np.zeros((6, 6, 1))
        image[3:] = 1.0
        images = {"left dark": image, "right dark": 1 - image}
        value = np.zeros((6, 6, 1))
        value[1, 2:4], value[0, 0] = 0.3, 1.0
        drawn = plots.attribution_slices(
            images, {"mask": dict.fromkeys(images, value)}, np.zeros(value.shape, bool), spacing_mm=(1, 1, 1), index=0,
            opaque=opaque,
        )  # fmt: skip
        pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).reshape(-1, 3)
        found, counts = np.unique(pixels, axis=0, return_counts=True)
        red = found[(counts > 400) & (found[:, 0] > found[:, 2].astype(int) + 20)]
        assert len(red) == colours

    def test_a_level_is_a_line_across(self) -> None:
        """A value that does not depend on the setting is dashed over more than half of the panel's width."""
        lines = {"a": {10: Score(0.4, 0.3, 0.5, 8), 90: Score(0.2, 0.1, 0.3, 8)}}
        ink = plots.canvas.INK.lstrip("#")
        colour = [int(ink[place : place + 2], 16) for place in (0, 2, 4)]

        def widest(**options: Any) -> int:
            drawn = plots.curves({"AUC": lines}, x_label="share", limits=(0, 1), **options)
            pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
            return int((np.abs(pixels - colour).max(axis=2) < 30).sum(axis=1).max())

        assert widest(levels={"without a mask": 0.35}) > widest() + 150

    def test_labels_must_match(self) -> None:
        """Truth and prediction must have the same labels."""
        with pytest.raises(OutOfRange, match=r"same labels, got \['FLAIR', 'T2w'\] and \['T2w'\]"):
            plots.bland_altman(TRUTH, {"T2w": FOUND["T2w"]})

    def test_outlines_follow_the_edges_of_voxels(self) -> None:
        """The outline of one voxel is a closed square of four edges, 1 × 1.5 mm, at the position of the voxel."""
        from matplotlib.figure import Figure as Canvas

        axes = Canvas().subplots()
        mask = np.zeros((4, 3), dtype=bool)
        mask[3, 1] = True
        plots.slices.draw_outline(axes, mask, SPACING, "red", "-")
        segments = axes.collections[0].get_segments()
        assert sorted(sorted(map(tuple, one)) for one in segments) == [
            [(3.0, 1.5), (3.0, 3.0)],
            [(3.0, 1.5), (4.0, 1.5)],
            [(3.0, 3.0), (4.0, 3.0)],
            [(4.0, 1.5), (4.0, 3.0)],
        ]

    def test_sixteen_configurations_look_different(self) -> None:
        """Sixteen configurations differ in colour or marker."""
        assert len({plots.canvas.look(index) for index in range(16)}) == 16


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [((0.2, 0.8), 0.1, (0.2, 0.8)), ((0.84, 0.86), 0.2, (0.75, 0.95)), ((0.5,), 0.4, (0.3, 0.7)), ((), 0.0, (0, 1))],
)
def test_colours_do_not_separate_what_intervals_do_not(
    values: tuple[float, ...], width: float, expected: tuple[float, float]
) -> None:
    """The colours span the values, and at least the median width of the intervals around their middle."""
    scores = [Score(one, one - width / 2, one + width / 2, 10) for one in values]
    assert colour_range(scores) == pytest.approx(expected)


def test_colours_of_values_without_intervals() -> None:
    """Values without intervals use the whole range; equal values have a range above zero."""
    assert colour_range([Score(one, np.nan, np.nan, 3) for one in (1.0, 3.0)]) == (1.0, 3.0)
    low, high = colour_range([Score(2.0, np.nan, np.nan, 3), Score(np.nan, np.nan, np.nan, 0)])
    assert low < 2 < high
