import base64
import io
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from shipped import EXPERIMENTS, SHIPPED
from torch import nn

from whtnet.inspection import describe_layers
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d
from whtnet.records import put_record
from whtnet.report import ReportError, build_report
from whtnet.report.charts import curve_chart, layer_bars, pareto_chart
from whtnet.report.maps import in_sequency_order, layer_pictures, pixels, zeros_by_layer
from whtnet.report.scale import Scale, engineering
from whtnet.tables import Results, load_spec, stored_tables
from whtnet.tables.training import TrainedRow
from whtnet.transforms import fwht2

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

SPEC = """
title: Mine </script>
kind: training
rows:
  - {id: a, label: "first <b>", overrides: [], control: true}
  - {id: b, label: second, overrides: [], published: {top1: 90.12, parameters: 50, source: somewhere}}
"""


def record(row, seed, top1, parameters):
    history = [
        {"epoch": e, "test_top1": top1 - 10 / e, "train_loss": 1 / (e + seed), "seconds": 6.0} for e in (1, 2, 3)
    ]
    return {
        "format": 2,
        "identity": f"{row} {seed}",
        "table": "mine",
        "row": row,
        "recipe": "short",
        "seed": seed,
        "epochs": 3,
        "test_top1": top1,
        "precision": "float32",
        "cost": {"parameters": parameters, "macs": 100 * parameters},
        "settings": {"trainer": {"schedule": "onecycle"}},
        "environment": {"commit": None, "dirty": None, "versions": {"torch": "2"}, "device_name": "x", "threads": 1},
        "history": history,
    }


def layers_of_a_model():
    model = nn.Sequential(FWHT2d(4), BWHT1d(3, 3, block_size=2, blocks="separate"), HTPerceptron2d(3, 3, 4, paths=2))
    return describe_layers(model, torch.randn(2, 3, 4, 4))


@pytest.fixture
def project(tmp_path):
    """A table with records of two rows, one of which says what its layers learned: the specification, the results."""
    (tmp_path / "mine.yaml").write_text(SPEC)
    for seed, top1 in enumerate((90.0, 92.0)):
        put_record(tmp_path / "runs", record("a", seed, top1, 100))
        put_record(tmp_path / "runs", record("b", seed, top1 - 5, 50), layers_of_a_model())
    return load_spec(tmp_path, "mine"), results_in(tmp_path)


def results_in(folder):
    return Results(folder, folder, lambda spec, row, recipe, seed: f"{row['id']} {seed}")


@pytest.fixture
def crowded(project, tmp_path):
    """A page of a table with many rows at one cost, of the shipped times and the verdicts."""
    spec, results = project
    names = [f"paper_with_option_{number}" for number in range(18)]
    rows = [*spec.rows, *({"id": name, "label": f"as {name}", "overrides": []} for name in names)]
    for number, name in enumerate(names):
        put_record(results.records_folder, record(name, 0, 85 + number / 10, 50))
    shutil.copy(SHIPPED.folder / "speed.json", tmp_path)
    many = results_in(tmp_path)
    return build_report([replace(spec, rows=tuple(rows)), load_spec(EXPERIMENTS, "speed")], many)


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.anchors, self.links, self.external = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors += [attributes["id"]] if "id" in attributes else []
        if tag == "a":
            self.links.append(attributes["href"])
        elif any(attributes.get(name, "data:").split(":")[0] != "data" for name in ("src", "href")):
            self.external.append((tag, attributes))


def test_the_page_is_whole(project):
    spec, results = project
    html = build_report([spec], results)
    page = Page(html)
    assert page.external == []
    assert len(set(page.anchors)) == len(page.anchors)
    assert {link.removeprefix("#") for link in page.links} <= set(page.anchors)
    assert {"accuracy", "accuracy-mine", "tables", "table-mine"} <= set(page.anchors)
    assert not {"speed", "verdicts"} & set(page.anchors)
    assert html.count('role="img"') == 1 + 3  # accuracy; unfolded: against MACs, two of curves
    assert html.count("data:image/png") == (1 + 1 + 2) + (1 + 2)
    assert "Mine &lt;/script&gt;" in html
    assert "first &lt;b&gt;" in html
    assert "somewhere" in html
    assert "<code>experiments/mine.yaml</code>" in html


def test_records_without_layers_have_no_pictures(project):
    spec, results = project
    shutil.rmtree(results.records_folder)
    put_record(results.records_folder, record("a", 0, 90.0, 100))
    assert "What the layers learned" not in build_report([spec], results_in(results.folder))


def test_what_was_not_made_is_named_with_its_command(project, tmp_path):
    spec, results = project
    specs = [load_spec(EXPERIMENTS, "speed"), spec]
    assert "<code>make reproduce-table TABLE=speed</code>" in build_report(specs, results)
    with pytest.raises(ReportError, match="make reproduce-table"):
        build_report(specs, results_in(tmp_path / "nowhere"))


def test_files_of_tables_are_linked_from_where_the_page_lies(project, tmp_path):
    spec, results = project
    (results.folder / "tables").mkdir()
    (results.folder / "tables" / "mine-1.csv").write_text("row\n")
    assert 'href="tables/mine-1.csv"' in build_report([spec], results)
    elsewhere = tmp_path / "a" / "b"
    assert 'href="../../tables/mine-1.csv"' in build_report([spec], results, elsewhere)


def test_a_recipe_has_a_chart_of_its_own(project):
    spec, results = project
    for row, top1, parameters in (("a", 96.0, 100), ("b", 95.0, 50)):
        long = record(row, 0, top1, parameters)
        put_record(results.records_folder, {**long, "recipe": "long", "epochs": 9, "identity": f"{row} 0"})
    html = build_report([spec], results_in(results.folder))
    assert re.findall(r"<h4>Recipe <code>(.*?)</code>", html) == ["long", "short"]
    assert "Alone by its recipe" not in html
    for path in results.records_folder.glob("mine/b-*"):
        if '"long"' in path.read_text():
            path.unlink()
    html = build_report([spec], results_in(results.folder))
    assert re.findall(r"<h4>Recipe <code>(.*?)</code>", html) == ["short"]
    assert re.search("Alone by its recipe, and in no chart: first.*96.00 .n=1.", html)


def test_points_are_those_of_the_records(project):
    spec, results = project
    rows = results.rows(spec)
    chart = pareto_chart(rows, rows, "parameters")
    marks = {mark.label: mark for mark in chart.marks}
    assert {label: mark.kind for label, mark in marks.items()} == {
        "a": "control",
        "b": "trained",
        "b, published": "published",
    }
    assert marks["a"].text == "first <b>: 91.00 ± 1.41 (n=2) %, 100 parameters"
    assert marks["b, published"].text == "published, somewhere: 90.12 %, 50 parameters"
    assert marks["b"].x == marks["b, published"].x < marks["a"].x
    assert marks["a"].y < marks["b, published"].y < marks["b"].y  # from the top
    per_percent = (marks["b"].y - marks["a"].y) / 5
    assert marks["b"].bottom - marks["b"].top == pytest.approx(2 * 2**0.5 * per_percent)
    assert marks["b, published"].top == marks["b, published"].bottom
    corners = [tuple(map(float, corner.split(","))) for corner in chart.lines[0].points.split()]
    expected = [(marks["b"].x, marks["b"].y), (marks["a"].x, marks["b"].y), (marks["a"].x, marks["a"].y)]
    assert corners == [(pytest.approx(10 * x, rel=1e-3), pytest.approx(y, rel=1e-3)) for x, y in expected]
    macs = pareto_chart(rows, rows, "macs")
    assert [mark.label for mark in macs.marks] == ["a", "b"]  # published MACs are not known


def test_curves_are_those_of_the_records(project):
    spec, results = project
    rows = results.rows(spec)
    chart = curve_chart(rows, "test_top1")
    assert len(chart.lines) == 2
    band, mean = (
        [float(pair.split(",")[1]) for pair in text.split()] for text in (chart.lines[0].band, chart.lines[0].points)
    )
    per_percent = (mean[0] - mean[1]) / 5
    assert mean[1] - mean[2] == pytest.approx((10 / 2 - 10 / 3) * per_percent, rel=0.01)
    assert band[0] - mean[0] == pytest.approx(2**0.5 * per_percent, rel=0.01)
    assert mean[0] - band[-1] == pytest.approx(2**0.5 * per_percent, rel=0.01)
    one_seed = replace(rows[0], records=rows[0].records[:1])
    assert curve_chart([one_seed], "test_top1").lines[0].band == ""
    ends = [mark.y + mark.dy for mark in curve_chart(rows, "train_loss").marks]  # two curves that end at one value
    assert abs(ends[0] - ends[1]) >= 15


def test_bars_are_as_long_as_what_they_say():
    spec = load_spec(EXPERIMENTS, "speed")
    bars = layer_bars(spec, SHIPPED.measured(spec))
    found = [bar for group in bars.groups.values() for bar in group]
    values = [float(bar.text.rstrip("×").replace(",", "")) for bar in found]
    assert sorted(bar.share for bar in found) == [
        found[i].share for i in sorted(range(len(found)), key=lambda i: values[i])
    ]
    assert all((bar.share < bars.one) == (value < 1) for bar, value in zip(found, values, strict=True))


def test_scales():
    scale = Scale.around([10, 20], air=0.1)
    assert (scale.low, scale.high) == (9, 21)
    assert scale.share(15) == 0.5
    assert scale.ticks() == [10.0, 12.5, 15.0, 17.5, 20.0]
    log = Scale(1, 1000, log=True)
    assert [log.share(value) for value in (1, 10, 1000)] == [0, pytest.approx(1 / 3), 1]
    assert log.ticks() == [1, 10, 100, 1000]
    assert Scale.around([5, 5]).share(5) == 0.5
    assert [engineering(value) for value in (0.1, 7, 133_000, 1_500_000)] == ["0.1", "7", "133k", "1.5M"]


def test_maps_are_in_sequency_order():
    x = torch.randn(8, 8, dtype=torch.float64)
    torch.testing.assert_close(in_sequency_order(fwht2(x), dims=2), fwht2(x, order="sequency"))


def test_colours_tell_the_side_and_the_distance():
    image = pixels(torch.tensor([[1.0, 0.5], [1.25, -1.0]]), neutral=1.0)
    assert image[..., 3].tolist() == [[0, 64], [32, 255]]
    assert image[0, 1, :3].tolist() == image[1, 1, :3].tolist() != image[1, 0, :3].tolist()
    assert pixels(torch.ones(2, 2), neutral=1.0)[..., 3].max() == 0


def test_layers_are_shown_as_they_act():
    layer = {"name": "x", "kind": "FWHT2d", "clamp": True, "weight": None, "zero_share": 0.25}
    layer["threshold"] = [[-1.0, 0.25], [0.5, 0.75]]
    row = TrainedRow("r", "r", None, {}, {}, [{"layers": [layer]}, {"layers": [{**layer, "zero_share": 0.75}]}])
    (picture,) = layer_pictures(row)
    assert picture.title == "x: thresholds T, 0 to 0.75"
    image = Image.open(io.BytesIO(base64.b64decode(picture.address.partition(",")[2])))
    assert [image.getpixel((x, y))[3] for y in (0, 1) for x in (0, 1)] == [0, 85, 170, 255]
    other = replace(row, label="other", records=[{"layers": [{**layer, "name": "y"}]}])
    zeros = zeros_by_layer([row, other])
    assert zeros.layers == ["x", "y"]
    assert [[cell and str(cell) for cell in cells] for cells in zeros.rows.values()] == [
        ["50.00 ± 35.36 (n=2)", None],
        [None, "25.00 (n=1)"],
    ]


def test_the_shipped_results_make_a_small_page_that_begins_with_the_verdicts():
    specs = SHIPPED.specs()
    html = build_report(specs, SHIPPED)
    assert len(html.encode()) < 2_000_000
    assert "Not made yet" not in html
    assert {f"table-{spec.name}" for spec in specs} | {"speed"} <= set(Page(html).anchors)
    (table,) = stored_tables(SHIPPED.spec("verdicts"), SHIPPED)
    before_accuracy = html[: html.index('<section id="accuracy">')]
    assert all(
        f'data-heading="verdict"><b class="{row["verdict"].replace(" ", "-")}">' in before_accuracy
        for row in table.rows
    )
    assert before_accuracy.count("<tr>") == 1 + len(table.rows)


# --- In a browser ---

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; install chromium to test the page in it"
)


def browse(path, dark):
    """Load a page in Chromium, without a network, until it logs `probe JSON` to the console, 120 seconds at most.

    Returns what was logged so (None: nothing), and the console's other messages.
    """
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1500,1000"]
    options += ["--allow-file-access-from-files"]
    options += [f"--blink-settings=preferredColorScheme={int(not dark)}", f"--user-data-dir={path.parent / 'profile'}"]
    options += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri()]
    probe, messages = None, []
    with subprocess.Popen([CHROMIUM, *options], stderr=subprocess.PIPE, text=True) as chromium:
        watchdog = threading.Timer(120, chromium.terminate)
        watchdog.start()
        for line in chromium.stderr:
            if match := re.search(r'CONSOLE.*"probe (.*)", source: ', line):
                probe = json.loads(match[1])
                break
            messages += [line] if "CONSOLE" in line else []
        watchdog.cancel()
        chromium.terminate()
    return probe, messages


# Whether the page fits its window, labels cover one another, colours follow the theme, and texts appear, in a frame of
# the width that is asked for: a window is not narrower than a browser's controls.
PROBE = """<iframe src="%s" style="width: %dpx; height: 900px; border: 0"></iframe>
<script>
document.querySelector("iframe").onload = ({ target: { contentDocument: page, contentWindow: view } }) => {
  const color = () => view.getComputedStyle(page.body).backgroundColor;
  const folded = page.querySelectorAll("details img").length;
  const drawn = () => [...page.querySelectorAll("svg[role=img]")].filter((chart) => chart.checkVisibility()).length;
  const atFirst = drawn();
  for (const details of page.querySelectorAll("details")) details.open = true;
  const overlaps = [...page.querySelectorAll("svg[role=img]")].flatMap((chart) => {
    const labels = [...chart.querySelectorAll(".mark text")];
    const boxes = labels.map((label) => label.getBoundingClientRect());
    const overlap = (p, q) => p.left < q.right && q.left < p.right && p.top + 4 < q.bottom && q.top + 4 < p.bottom;
    return labels.flatMap((label, i) => labels.filter((_, j) => j < i && overlap(boxes[i], boxes[j]))
      .map((other) => `${label.textContent} | ${other.textContent}`));
  });
  const box = page.documentElement, inside = [...page.querySelectorAll(".mark text, .bar")]
    .every((text) => text.getBoundingClientRect().right <= box.clientWidth && text.getBoundingClientRect().left >= 0);
  const before = color();
  page.getElementById("theme").click();
  const mark = page.querySelector(".mark[data-tip]"), tip = page.getElementById("tip");
  mark.dispatchEvent(new view.PointerEvent("pointerover", { bubbles: true, clientX: 300, clientY: 300 }));
  const broad = box.scrollWidth > box.clientWidth, shown = tip.checkVisibility() && tip.textContent;
  console.log("probe", JSON.stringify({ folded, atFirst, drawn: drawn(), overlaps, inside, broad, before,
    after: color(), tip: shown, tipped: mark.dataset.tip }));
};
</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_legible(tmp_path, crowded, width, dark):
    (tmp_path / "report.html").write_text(crowded)
    page = tmp_path / "frame.html"
    page.write_text(PROBE % ("report.html", width))
    probe, messages = browse(page, dark)
    assert messages == []
    assert probe, "the page was not loaded"
    assert probe["folded"] > 0
    assert 0 < probe["atFirst"] < probe["drawn"] == crowded.count('role="img"')
    assert probe["overlaps"] == []
    assert probe["inside"]
    assert not probe["broad"]
    light, black = "rgb(255, 255, 255)", "rgb(20, 23, 27)"
    assert (probe["before"], probe["after"]) == ((black, light) if dark else (light, black))
    assert probe["tip"] == probe["tipped"]


@needs_chromium
def test_the_browser_would_tell_of_errors(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>missing()</script><script>console.log('probe', '[1]')</script>")
    probe, messages = browse(page, dark=False)
    assert probe == [1]
    assert any("missing is not defined" in message for message in messages)
