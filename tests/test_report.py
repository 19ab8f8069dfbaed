import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from shipped import EXPERIMENTS, SHIPPED
from torch import nn

from whtnet.inspection import describe_layers
from whtnet.layers import BWHT1d, FWHT2d, HTPerceptron2d
from whtnet.records import put_record
from whtnet.report import ReportError, build_report
from whtnet.report.charts import curve_charts, in_sequency_order, layer_charts, pareto_charts, zero_chart
from whtnet.tables import Results, load_spec
from whtnet.tables.training import TrainedRow
from whtnet.transforms import fwht2

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

SPEC = """
title: Mine </script>
kind: training
rows:
  - {id: a, label: "first <b>", overrides: []}
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


def charts_in(html):
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def test_the_page_is_whole(project):
    spec, results = project
    html = build_report([spec], results)
    page = Page(html)
    assert page.external == []
    assert len(set(page.anchors)) == len(page.anchors)
    assert {link.removeprefix("#") for link in page.links} <= set(page.anchors)
    assert {"accuracy", "curves", "layers", "tables", "table-mine"} <= set(page.anchors)
    assert "speed" not in page.anchors
    assert html.count("plotly.js v") == 1
    charts = charts_in(html)
    assert len(charts) == html.count('class="chart"') == 2 + 2 + 1 + (1 + 1 + 2) + (1 + 2)
    assert all(chart["data"] for chart in charts)
    assert "Mine &lt;/script&gt;" in html
    assert "first &lt;b&gt;" in html
    assert "somewhere" in html
    assert "<code>experiments/mine.yaml</code>" in html


def test_records_without_layers_have_no_such_section(project):
    spec, results = project
    shutil.rmtree(results.records_folder)
    put_record(results.records_folder, record("a", 0, 90.0, 100))
    assert "layers" not in Page(build_report([spec], results_in(results.folder))).anchors


def test_what_was_not_made_is_named_with_its_command(project, tmp_path):
    spec, results = project
    specs = [load_spec(EXPERIMENTS, "speed"), spec]
    assert "<code>make reproduce-table TABLE=speed</code>" in build_report(specs, results)
    with pytest.raises(ReportError, match="make reproduce-table"):
        build_report(specs, results_in(tmp_path / "nowhere"))


def test_points_and_curves_are_those_of_the_records(project):
    spec, results = project
    rows = results.rows(spec)
    parameters, macs = (chart.data for chart in pareto_charts(rows))
    points = {(t["x"][0], t["y"][0]): t["error_y"] for t in parameters["data"] if t["name"] in ("first <b>", "second")}
    assert set(points) == {(100, 91.0), (50, 86.0)}
    assert points[100, 91.0] == {"type": "data", "array": [pytest.approx(2**0.5)], "visible": True}
    assert [(t["x"], t["y"]) for t in parameters["data"] if t["name"] == "published"] == [([50], [90.12])]
    assert "published" not in [t["name"] for t in macs["data"]]  # its MACs are not known
    accuracy = curve_charts(rows)[0].data["data"]
    assert len(accuracy) == 4
    band, mean = accuracy[:2]
    assert mean["y"] == [81.0, 86.0, pytest.approx(91 - 10 / 3)]
    assert band["y"][0] - mean["y"][0] == pytest.approx(2**0.5)
    assert band["y"][-1] - mean["y"][0] == pytest.approx(-(2**0.5))
    one_seed = replace(rows[0], records=rows[0].records[:1])
    assert len(curve_charts([one_seed])[0].data["data"]) == 1


def test_maps_are_in_sequency_order():
    x = torch.randn(8, 8, dtype=torch.float64)
    torch.testing.assert_close(in_sequency_order(fwht2(x), dims=2), fwht2(x, order="sequency"))


def test_layers_are_drawn_as_they_act():
    layer = {"name": "x", "kind": "FWHT2d", "clamp": True, "weight": None, "zero_share": 0.25}
    layer["threshold"] = [[-1.0, 0.25], [0.5, 0.75]]
    row = TrainedRow("r", "r", None, {}, {}, [{"layers": [layer]}, {"layers": [{**layer, "zero_share": 0.75}]}])
    (chart,) = layer_charts(row)
    assert chart.data["data"][0]["z"] == [[0.0, 0.25], [0.5, 0.75]]
    other = replace(row, label="other", records=[{"layers": [{**layer, "name": "y"}]}])
    (zeros,) = zero_chart([row, other]).data["data"]
    assert (zeros["x"], zeros["y"], zeros["z"]) == (["x", "y"], ["r", "other"], [[50.0, None], [None, 25.0]])
    assert zeros["text"] == [["50.00 ± 35.36 (n=2)", ""], ["", "25.00 (n=1)"]]


def test_the_shipped_results_make_a_page():
    specs = SHIPPED.specs()
    html = build_report(specs, SHIPPED)
    assert "Not made yet" not in html
    assert {f"table-{spec.name}" for spec in specs} | {"speed"} <= set(Page(html).anchors)


# --- In a browser ---

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; install chromium to test the page in it"
)


def browse(path, dark):
    """Load a page in Chromium, without a network and tall enough for all charts, until it logs `probe JSON` to the
    console, 120 seconds at most: what was logged so (None: nothing), the console's other messages."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,20000"]
    options += [f"--blink-settings=preferredColorScheme={int(not dark)}", f"--user-data-dir={path.parent / 'profile'}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri()]
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


PROBE = """<script>
(async () => {
  const until = async (condition) => { while (!condition()) await new Promise((go) => setTimeout(go, 250)); };
  const background = () => document.querySelector(".main-svg").style.background;
  const drawn = () => charts.filter((chart) => chart.querySelector(".main-svg .xy")).length;
  await until(() => drawn() === charts.length);
  const before = background();
  document.getElementById("theme").click();
  await until(() => background() !== before);
  const broad = document.documentElement.scrollWidth > innerWidth;
  console.log("probe", JSON.stringify({ drawn: drawn(), before, after: background(), broad }));
})();
</script>"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_is_drawn_in_both_themes(project, dark):
    shipped = load_spec(EXPERIMENTS, "speed")
    spec, results = project
    shutil.copy(SHIPPED.folder / "speed.json", results.folder)
    html = build_report([spec, shipped], results)
    page = results.folder / "report.html"
    page.write_text(html.replace("</body>", PROBE + "</body>"))
    probe, messages = browse(page, dark)
    assert messages == []
    assert probe, "not all charts were drawn, or did not follow the theme"
    assert probe["drawn"] == len(charts_in(html)) > 10
    light_card, dark_card = "rgb(247, 248, 250)", "rgb(27, 31, 37)"
    assert (probe["before"], probe["after"]) == ((dark_card, light_card) if dark else (light_card, dark_card))
    assert not probe["broad"]


@pytest.mark.slow
@needs_chromium
def test_the_browser_would_tell_of_errors(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>missing()</script><script>console.log('probe', '[1]')</script>")
    probe, messages = browse(page, dark=False)
    assert probe == [1]
    assert any("missing is not defined" in message for message in messages)
