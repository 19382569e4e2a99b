"""The report of finished tables and figures: its numbers are those of the files, nothing is hidden, nothing is asked of another address."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldm.paper.report.build import BEGIN, END, publish, update_readme, write_report
from ldm.paper.results.cells import Cell
from ldm.util import UserError
from tests.made_up_report import CLAIMS, NAMES, make_up, make_up_all


class Page(HTMLParser):
    """What a browser finds: tables as lists of the texts of their cells, headings, addresses, images, all tags and the whole text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables, self.headings, self.addresses, self.images, self.tags, self.text, self._into = [], [], [], [], [], "", None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [attributes[key] for key in ("src", "href", "srcset", "data", "action") if key in attributes]
        self._into = tag if tag != "style" and (self._into is None or tag in ("td", "th", "h1", "h2", "h3")) else self._into
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append([int(tag[1]), ""])
        elif tag == "img":
            self.images.append(attributes)

    def handle_data(self, data):
        self.text += data * (self.tags[-1:] != ["style"])
        if self._into in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._into in ("h1", "h2", "h3"):
            self.headings[-1][1] += data

    def handle_endtag(self, tag):
        self._into = None if tag == self._into else self._into


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with the report of all tables and figures; read only."""
    out_dir = make_up_all(tmp_path_factory.mktemp("whole"))
    write_report(out_dir, "mini")
    return out_dir


@pytest.fixture(scope="module")
def page(whole) -> Page:
    return Page(whole / "report.html")


def table_of_report(out_dir: Path, **made_up) -> list[list[str]]:
    """Table 3 as the page shows it, of a report that has no other."""
    make_up(out_dir, "table3", **made_up)
    write_report(out_dir, "mini")
    return Page(out_dir / "report.html").tables[0]


def test_published_stands_beside_measured_with_spread_interval_and_trainings(tmp_path):
    assert table_of_report(tmp_path) == [
        ["row", "ID-ACC ↓", "CLIP ↑", "trainings"], ["published", "measured", "published", "measured"],
        ["base", "–", "0.673", "0.3078", "0.750", "1"],
        ["ours", "0.040", "0.225 ± 0.010 [0.200, 0.250]", "–", "0.716 ± 0.020 [0.700, 0.732]", "3"]]
    assert "| ours | 0.040 | **0.225** ± 0.010 \\[0.200, 0.250\\] | – | 0.716 ± 0.020 \\[0.700, 0.732\\] | 3 |" in (
        tmp_path / "report.md").read_text()


def test_a_column_without_published_values_is_one_column(tmp_path):
    assert table_of_report(tmp_path, cells={("base", "faces"): Cell(1.0), ("ours", "faces"): Cell(0.5)}) == [
        ["row", "faces ↑", "trainings"], ["base", "1.000", "1"], ["ours", "0.500", "1"]]


def test_what_was_not_measured_is_a_dash_and_a_column_without_values_is_left_out(tmp_path):
    cells = {("base", "FID (non-id)"): Cell(None, n_seeds=1), ("ours", "FID (non-id)"): Cell(1.5)}
    assert table_of_report(tmp_path, cells=cells, columns=["FID (non-id)", "CLIP"])[1:] == [["base", "–", "–"], ["ours", "1.50", "1"]]


def test_a_published_value_is_shown_where_nothing_was_measured(tmp_path):
    cells = {("base", "Attr-ACC, S_test"): Cell(None, published=0.69361), ("ours", "Attr-ACC, S_test"): Cell(0.5, published=0.60222)}
    assert table_of_report(tmp_path, cells=cells)[2:] == [["base", "0.69361", "–", "–"], ["ours", "0.60222", "0.500", "1"]]
    make_up(tmp_path, "table2", cells={cell: Cell(None, published=value.published) for cell, value in cells.items()})
    write_report(tmp_path, "mini")
    assert "| Attr-ACC, people never seen ↑ | – (paper: 0.69361) | – (paper: 0.60222) |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("column", "best"), [("ID-ACC", "0.25"), ("CLIP", "0.50"), ("faces, prompts", None)])
def test_the_best_value_is_bold_whosever_it_is(tmp_path, column, best):
    table_of_report(tmp_path, cells={("base", column): Cell(0.25), ("ours", column): Cell(0.5)})
    assert re.findall(r"<td><b>(.*?)0</b>", (tmp_path / "report.html").read_text()) == ([best] if best else [])


def test_curves_show_their_ends_and_all_points_on_demand(tmp_path):
    names = [f"dreambooth, {prefix}, {step}" for prefix in ("without", "with") for step in (0, 100)]
    make_up(tmp_path, "figure5", cells={(name, "ID-ACC"): Cell(0.1) for name in names},
            rows=[{"name": name, "commands": [], "seconds": None} for name in names])
    write_report(tmp_path, "mini")
    shown, folded = Page(tmp_path / "report.html").tables[:2]
    assert [row[0] for row in shown[1:]] == names[1::2] and [row[0] for row in folded[1:]] == names


def test_each_table_and_figure_has_its_section_and_a_link_at_the_top(page):
    titles = [title for level, title in page.headings if level == 2]
    for name in NAMES:
        assert f"{name[:-1].capitalize()} {name[-1]}: The title of {name}" in titles and f"#{name}" in page.addresses
    assert titles.index("The title of figure1") < titles.index("The paper's claims") < titles.index("What the prefix does") < 5
    assert all(below - above <= 1 for (above, _), (below, _) in zip(page.headings, page.headings[1:], strict=False))


def test_claims_have_their_verdicts_in_words(page, whole):
    assert "Of 2 claims: holds 1, does not hold 1." in page.text
    for claim in CLAIMS:
        assert [3, f"{claim['number']}. {claim['claim']}"] in page.headings and claim["why"] in page.text
        assert all(line in page.text for line in claim["figures"])
    markdown = (whole / "report.md").read_text()
    assert "| 2 | Best of all. (ablations) | **does not hold** | 1.7, not 1.2.<br>3 of 4.<br>*Few people.* |" in markdown


def test_each_row_says_how_to_make_it_again_and_what_that_takes(page):
    assert page.text.count("ours, 1 min") == len(NAMES) == page.text.count("base: nothing is trained")
    assert "python -m ldm.paper table2 --preset mini --seeds 3" in page.text and "Table 1, Figure 3" in page.text


def test_what_tables_share_is_counted_once_in_all(page):
    assert page.tables[-1][1] == ["Figure 1", "2 min"]
    assert page.tables[-1][-1] == ["all, what several share counted once", "6 min"]  # 60 s and 11 x 30 s


def test_the_page_refers_to_nothing_outside_itself(page, whole):
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags) and "url(" not in (whole / "report.html").read_text()
    anchors = re.findall(r' id="(.+?)"', (whole / "report.html").read_text())
    assert {address[1:] for address in page.addresses if address[0] == "#"} <= set(anchors) and len(anchors) == len(set(anchors))


def test_every_picture_is_in_the_page_with_a_text_and_grids_are_compressed(page):
    assert len(page.images) == 8 and all(image["alt"] for image in page.images)
    kinds = {image["alt"][:8]: (image["src"][11:15], image["width"]) for image in page.images}
    assert kinds["Figure 1"] == ("webp", "1200") and kinds["Figure 6"] == ("png;", "1300")


def test_the_text_of_files_is_shown_as_it_is(tmp_path):
    bad = "<script>alert('|')</script>\n# a *b* [c](http://d)"
    cells = {(bad, "ID-ACC"): Cell(0.1)}
    make_up(tmp_path, "table3", cells=cells, rows=[{"name": bad, "commands": [bad], "seconds": 1}], title=bad, remark=bad, section=bad)
    (tmp_path / "claims.json").write_text(json.dumps([dict.fromkeys(CLAIMS[0], bad) | {"figures": [bad]}]))
    write_report(tmp_path, "mini")
    page, markdown = Page(tmp_path / "report.html"), (tmp_path / "report.md").read_text()
    assert "script" not in page.tags and page.tables[0][1][0] == bad and page.text.count(bad) >= 6
    assert f"```bash\n{bad}\n```" in markdown
    assert not re.search(r"<script>|[^\\]\]\((?!#)|^# a", markdown.replace(f"```bash\n{bad}\n```", ""), re.MULTILINE)


def test_what_is_missing_is_said_with_its_command(tmp_path):
    make_up(tmp_path, "table1")
    make_up(tmp_path, "figure8")
    (make_up(tmp_path, "table2") / "about.json").unlink()  # not finished
    assert [path.name for path in write_report(tmp_path, "mini")] == ["report.html", "report.md", "figure8.png"]
    text = Page(tmp_path / "report.html").text
    assert "python -m ldm.paper figure1 figure3 table2 figure4 figure5 table3 table4 figure6 figure7 --preset mini" in text
    assert "Not checked yet" in text and "What the prefix does" not in text


def test_a_table_of_ones_own_stands_behind_the_papers(tmp_path):
    make_up(tmp_path, "rates 2", section="", arguments={"devices": "cpu", "what": ["table1", "my/rates 2.yaml"]}, kind="curve")
    make_up(tmp_path, "table1")
    write_report(tmp_path, "mini")
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Table 1: The title of table1") < text.index('<a name="rates-2"></a>\n\n## rates 2: The title of rates 2')
    assert "python -m ldm.paper my/rates 2.yaml --preset mini --seeds 3" in text and "The paper's ." not in text


@pytest.mark.parametrize(("file", "content", "words"), [
    ("table1/about.json", "{", "holds no finished table1"), ("table1/about.json", "{}", "KeyError: 'rows'"),
    ("table1/about.json", "[]", "holds no finished table1"), ("table1/table1.json", "[{}]", "delete"),
    ("claims.json", "[{}]", "is no list of claims"), ("claims.json", "", "is no list of claims")])
def test_a_damaged_file_ends_with_a_sentence(tmp_path, file, content, words):
    make_up(tmp_path, "table1")
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        write_report(tmp_path, "mini")


def test_a_picture_that_is_none_is_named(tmp_path):
    (make_up(tmp_path, "figure1") / "figure1.png").write_text("no picture")
    with pytest.raises(UserError, match="figure1.png cannot be read as an image"):
        write_report(tmp_path, "mini")


def test_nothing_finished_ends_with_a_sentence(tmp_path):
    with pytest.raises(UserError, match="nothing is finished"):
        write_report(tmp_path, "mini")


def test_the_published_folder_has_the_report_and_the_pictures_it_links(whole, tmp_path):
    published = publish(whole, tmp_path / "new")
    links = re.findall(r"\]\((\w.*?)\)", (tmp_path / "new" / "report.md").read_text())
    assert len(links) == 8 and {path.name for path in (tmp_path / "new").iterdir()} == {"report.html", "report.md", *links}
    assert all(path.read_bytes() == (whole / path.name).read_bytes() for path in published)


def test_no_report_is_published_before_it_is_written(tmp_path):
    with pytest.raises(UserError, match="write the report first"):
        publish(tmp_path, tmp_path / "new")


def test_the_readme_gets_the_summary_between_its_two_lines_and_nothing_else_changes(whole, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nof old\n{END}\n\nbehind\n")
    update_readme(readme, whole)
    written = readme.read_text()
    assert written.startswith(f"before\n\n{BEGIN}\n\n") and written.endswith(f"\n\n{END}\n\nbehind\n") and "of old" not in written
    assert "| ID-ACC, people of the training ↓ | 0.673 | 0.225 ± 0.010 (paper: 0.040) |" in written
    assert "| CLIP, the same prompts ↑ | 0.750 (paper: 0.3078) | 0.716 ± 0.020 |" in written
    assert "Trainings: up to 3 of each row, with the preset mini. Of 2 claims: holds 1, does not hold 1." in written
    update_readme(readme, whole)
    assert readme.read_text() == written


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_readme_without_the_two_lines_is_refused_and_stays(whole, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="has no place for the results"):
        update_readme(tmp_path / "README.md", whole)
    assert (tmp_path / "README.md").read_text() == text


def test_a_readme_needs_table_2(tmp_path):
    make_up(tmp_path, "table1")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}")
    with pytest.raises(UserError, match="table2 is not finished"):
        update_readme(tmp_path / "README.md", tmp_path)


def test_the_report_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, ldm.paper.report.build; assert 'torch' not in sys.modules"], check=True,
                   cwd=Path(__file__).parents[2])


def test_the_committed_report_is_small():
    for path in Path(__file__).parents[2].glob("data/mini/paper/report.html"):
        assert path.stat().st_size < 3e6
