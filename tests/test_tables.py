import csv
import io
import json
import math
import re

import pytest
from shipped import EXPERIMENTS, ROOT, SHIPPED, compose_config

from whtnet.backbones import build_backbone, without_weights
from whtnet.commands.measuring import MEASURE
from whtnet.errors import UserError
from whtnet.policy import Policy, apply_policy_
from whtnet.records import RecordError, put_record, write_json
from whtnet.tables import (
    Column,
    Identities,
    Results,
    Shown,
    Spread,
    Table,
    TableError,
    TableSpec,
    command_for,
    draw_figures,
    load_spec,
    parameter_tables,
    spread,
    stored_tables,
    table_names,
    to_csv,
    to_latex,
    to_markdown,
    to_rich,
    update_page,
    write_tables,
)
from whtnet.tables.points import pareto_front
from whtnet.tables.spec import KINDS

ENVIRONMENT = {
    "commit": "0123456789",
    "dirty": False,
    "versions": {"torch": "2.15.0"},
    "device_name": "a CPU",
    "threads": 2,
}


def write_spec(folder, text):
    (folder / "mine.yaml").write_text(text)
    return load_spec(folder, "mine")


def identities(spec, row, recipe, seed):
    """Of rows whose settings are their labels."""
    return f"{row['label']} {recipe} {seed}"


LABELS = {"a": "first", "b": "second", "c": "third"}


def record(row, seed, top1, parameters=100, table="mine", recipe="short"):
    return {
        "format": 2,
        "identity": f"{LABELS[row]} {recipe} {seed}",
        "table": table,
        "row": row,
        "recipe": recipe,
        "seed": seed,
        "epochs": 5,
        "test_top1": top1,
        "history": [
            {"epoch": e, "test_top1": top1, "train_loss": 1.0, "seconds": s} for e, s in ((1, 60), (2, 6), (3, 6))
        ],
        "precision": "float32",
        "cost": {"parameters": parameters, "macs": 2_000_000},
        "finished": "2026-01-01T00:00:00+00:00",
        "settings": {"trainer": {"schedule": "onecycle"}},
        "environment": ENVIRONMENT,
    }


def results_of(folder, records=(), counts=None, reference=None):
    """A folder of results with these records, and counts of the table's rows."""
    for one in records:
        put_record(folder / "runs", one)
    if counts is not None:
        write_json(folder / "mine.json", {"rows": counts})
    return Results(folder, folder, identities, reference)


def tables_of(folder, text, records=(), counts=None):
    return stored_tables(write_spec(folder, text), results_of(folder, records, counts))


SPEC = """
title: Mine
kind: training
seeds: [0, 1]
rows:
  - {id: a, label: first, overrides: []}
  - {id: b, label: second, overrides: [], published: {top1: 90.12, parameters: 50, source: somewhere}}
  - {id: c, label: third, overrides: []}
"""


def test_training_table_aggregates_records(tmp_path):
    records = [record("a", 0, 90.0), record("a", 1, 92.0), record("b", 0, 88.0, 50), record("a", 0, 1.0, table="other")]
    (table,) = tables_of(tmp_path, SPEC, records)
    rows = [dict(zip(table.headings, row, strict=True)) for row in table.texts]
    assert rows[0]["test top-1 (%)"] == "91.00 ± 1.41 (n=2)"
    assert rows[1]["test top-1 (%)"] == "88.00 (n=1)"
    assert (rows[1]["parameters"], rows[1]["change"]) == ("50", "-50.0%")
    assert (rows[0]["published top-1 (%)"], rows[1]["published top-1 (%)"]) == ("not at hand", "90.12")
    assert rows[1]["source"] == "somewhere"
    assert rows[2]["test top-1 (%)"] == rows[2]["parameters"] == "not run"
    assert rows[0]["minutes a run"] == "0.5"  # 5 epochs of 6 seconds
    assert table.rows[0]["test_top1"] == Spread(91.0, 2**0.5, 2, (0, 1))
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [lines[0][f"test_top1_{part}"] for part in ("mean", "std", "n", "seeds")] == [
        "91",
        "1.414213562",
        "2",
        "0 1",
    ]
    assert [lines[1][f"test_top1_{part}"] for part in ("mean", "std", "n", "seeds")] == ["88", "", "1", "0"]
    assert (lines[1]["macs"], lines[1]["change"], lines[1]["published_top1"]) == ("2000000", "-0.5", "90.12")
    assert lines[2]["test_top1_mean"] == lines[2]["parameters"] == lines[0]["published_top1"] == ""
    assert any("a CPU" in note and "01234567" in note for note in table.notes)


def test_rows_of_equal_settings_show_the_same_run(tmp_path):
    text = SPEC.replace("label: third", "label: first")
    records = [record("a", 0, 90.0), record("a", 1, 92.0), record("b", 0, 88.0)]
    (table,) = tables_of(tmp_path, text, records)
    first, second, third = (row["test_top1"] for row in table.rows)
    assert first == third == Spread(91.0, 2**0.5, 2, (0, 1))
    assert second == Spread(88.0, 0, 1, (0,))


COUNTED = """
counted:
  - {label: small, input_size: [3, 32, 32]}
  - {label: large, input_size: [3, 64, 64]}
"""


def test_rows_that_were_not_trained_show_what_they_cost(tmp_path):
    counts = {
        row: [{"parameters": n, "macs": 1_000_000}, {"parameters": 2 * n, "macs": 4_000_000}]
        for row, n in (("a", 100), ("b", 50), ("c", 40))
    }
    text = SPEC.replace("id: c,", "id: c, baseline: b,") + COUNTED
    table, costs = tables_of(tmp_path, text, [record("a", 0, 90.0)], counts)
    assert [row[1:5] for row in table.texts] == [
        ["100", "+0.0%", "1.0", "90.00 (n=1)"],
        ["50", "-50.0%", "1.0", "not run"],
        ["40", "-20.0%", "1.0", "not run"],
    ]
    assert costs.headings[1:3] == ["small: parameters", "small: MACs (M)"]
    assert costs.texts[2][1:] == ["40", "1.0", "80", "4.0"]


def test_a_row_trained_by_two_recipes_is_two_rows(tmp_path):
    full = {**record("a", 0, 95.0, recipe="authors"), "epochs": 200}
    (table,) = tables_of(tmp_path, SPEC, [record("a", 0, 90.0), full, record("b", 0, 80.0)])
    assert [row["row"] for row in table.rows] == [
        "first; recipe authors",
        "first",
        "second",
        "third",
    ]
    assert [row[4] for row in table.texts] == ["95.00 (n=1)", "90.00 (n=1)", "80.00 (n=1)", "not run"]
    recipes = [row["recipe"] for row in table.rows]
    assert recipes[:2] == ["`authors`: onecycle, 200 epochs, float32", "`short`: onecycle, 5 epochs, float32"]


def test_pages_show_a_picked_row_beside_its_baseline(tmp_path):
    """What another optimiser does to a row alone, no page compares with a baseline by this one."""
    front = "front: {columns: [row, test_top1], rows: [a, b]}\n"
    adam = {**record("b", 0, 85.0, recipe="adam"), "epochs": 5}
    spec = write_spec(tmp_path, SPEC + front)
    tables = stored_tables(spec, results_of(tmp_path, [record("a", 0, 90.0), record("b", 0, 80.0), adam]))
    assert [row["row"] for row in tables[0].rows] == ["first", "second; recipe adam", "second", "third"]
    page = tmp_path / "page.md"
    page.write_text("<!-- table: mine -->\n<!-- end -->\n")
    update_page(page, spec, tables)
    assert [line.split("|")[1].strip() for line in page.read_text().splitlines()[3:-1]] == ["first", "second"]


def test_counts_alone_make_a_table_without_figures(tmp_path):
    spec = write_spec(tmp_path, SPEC + COUNTED)
    costs = [{"parameters": 10, "macs": 1_000_000}] * 2
    results = results_of(tmp_path, counts=dict.fromkeys("abc", costs))
    assert len(stored_tables(spec, results)) == 2
    assert draw_figures(spec, results, tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_records_count_for_the_row_that_asks_for_their_settings(tmp_path):
    made = [record("a", 0, 90.0), record("a", 1, 92.0), record("b", 0, 80.0), record("b", 3, 81.0)]
    changed = SPEC.replace("label: second", "label: other").replace("id: a,", "id: renamed,")
    (table,) = tables_of(tmp_path, changed, made)
    assert [(row["row"], row["test_top1"]) for row in table.rows] == [
        ("first", spread([90.0, 92.0], [0, 1])),
        ("other", "not run"),
        ("third", "not run"),
    ]
    assert table.notes[-1].startswith("2 records were made with other settings than the rows have today")
    assert table.notes[-1].endswith("b by `short`, seed 0, 3.")


def test_a_run_repeated_under_another_name_of_its_row_counts_once(tmp_path):
    made = [record("a", 0, 90.0), record("a", 1, 92.0)]
    again = record("a", 1, 91.0) | {"row": "renamed", "finished": "2026-02-01T00:00:00+00:00"}
    earlier = record("a", 0, 10.0) | {"row": "renamed", "finished": "2025-01-01T00:00:00+00:00"}
    (table,) = tables_of(tmp_path, SPEC.replace("id: a,", "id: renamed,"), [*made, again, earlier])
    assert table.rows[0]["test_top1"] == spread([90.0, 91.0], [0, 1])


def test_identities_are_composed_from_the_row_and_the_recipe(tmp_path):
    spec = write_spec(tmp_path, SPEC.replace("title: Mine", "title: Mine\noverrides: [device=cpu]"))
    asked = []

    def compose(overrides):
        asked.append(overrides)
        if "trainer=gone" in overrides:
            raise UserError("no such recipe")
        settings = {"backbone": {"name": "resnet20"}, "policy": {"name": "none", "rules": []}}
        return {**settings, "dataset": {"name": "digits"}, "trainer": {"epochs": 3}}

    identify = Identities(compose)
    first, second = (identify(spec, spec.rows[0], "short trainer.epochs=3", seed) for seed in (0, 1))
    assert asked == [["device=cpu", "trainer=short", "trainer.epochs=3"]]  # composed once
    assert first != second
    assert identify(spec, spec.rows[0], "gone", 0) is None


STARTED = SPEC.replace("id: b,", "id: b, start: a,").replace("id: c,", "id: c, start: b,")


def compose_rates(overrides):
    """Configs that differ in the learning rate alone."""
    rate = next((float(o.removeprefix("lr=")) for o in overrides if o.startswith("lr=")), 0.1)
    start = next((o.removeprefix("finetune.start=").strip("'") for o in overrides if "start" in o), None)
    settings = {
        "backbone": {"name": "resnet20"},
        "policy": {"name": "none", "rules": []},
        "dataset": {"name": "digits"},
    }
    return {**settings, "trainer": {"epochs": 3, "lr": rate}, "finetune": {"start": start}}


def test_a_changed_start_is_another_start_of_all_that_begin_with_it(tmp_path):
    def of(text):
        spec, identify = write_spec(tmp_path, text), Identities(compose_rates)
        return [identify(spec, row, "short", seed) for row in spec.rows for seed in (0, 1)]

    first = of(STARTED)
    assert len(set(first)) == 6  # a, b and c, of which b and c differ in their starts alone
    assert of(STARTED.replace("id: a,", "id: z,").replace("start: a", "start: z")) == first
    changed = of(STARTED.replace("label: first, overrides: []", "label: first, overrides: [lr=0.2]"))
    assert not set(changed) & set(first)
    last = of(STARTED.replace("label: third, overrides: []", "label: third, overrides: [lr=0.2]"))
    assert [a == b for a, b in zip(last, first, strict=True)] == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STARTED.replace("start: a", "start: aa"), "table 'mine' has no row 'aa'; did you mean a?"),
        (STARTED.replace("id: a,", "id: a, start: c,"), "rows start from each other, a → c → b → a; one must"),
        (STARTED.replace("start: a", "start: b"), "rows start from each other, b → b; one must"),
        (STARTED.replace("start: a", "start: [a]"), r"table 'mine' has no row \['a'\]"),
    ],
)
def test_starts_that_can_not_be(tmp_path, text, words):
    with pytest.raises(TableError, match=words) as error:
        write_spec(tmp_path, text)
    assert "\n" not in str(error.value)


def test_rows_without_runs_of_your_own_show_the_reference(tmp_path):
    (tmp_path / "own").mkdir()
    reference = results_of(tmp_path, [record("a", 0, 90.0), record("a", 1, 92.0), record("b", 0, 80.0)])
    write_spec(tmp_path / "own", SPEC)
    results = results_of(tmp_path / "own", [record("a", 0, 70.0)], reference=reference)
    (table,) = stored_tables(results.spec("mine"), results)
    assert [row["test_top1"] for row in table.rows] == [spread([70.0], [0]), spread([80.0], [0]), "not run"]


@pytest.mark.parametrize("spec", [spec for spec in SHIPPED.specs() if spec.counted], ids=lambda spec: spec.name)
def test_recorded_costs_are_those_counted(spec):
    counts = json.loads((ROOT / "results" / f"{spec.name}.json").read_text())["rows"]
    assert list(counts) == [row["id"] for row in spec.rows]
    assert {len(costs) for costs in counts.values()} == {len(spec.counted)}
    for (row, _), runs in SHIPPED.runs(spec).rows.items():
        assert all(run["cost"] == counts[row][0] for run in runs)


def test_rows_that_are_fine_tuned_replace_the_last_third_of_the_blocks():
    spec = load_spec(EXPERIMENTS, "efficientnet_lite0_cifar10")
    widths = [(112, 672), (672, 192), *[(192, 1152), (1152, 192)] * 3, (192, 1152), (1152, 320)]
    weights = sum(a * b for a, b in widths)
    size_of_block = {  # of each site, the numbers that its layer has
        "conv1x1": lambda a, b: 2 * math.gcd(a, b, 1024),  # thresholds and weights: the largest power of two in both
        "one_block": lambda a, b: 2 ** math.ceil(math.log2(max(a, b))),
        "crop_or_tile": lambda a, b: 0,
    }
    counts = json.loads((ROOT / "results" / f"{spec.name}.json").read_text())["rows"]
    assert counts["again"] == counts["baseline"]
    for row in (row for row in spec.rows if "policy=none" not in row["overrides"]):
        config = compose_config([*spec.overrides, *row["overrides"]])
        model = build_backbone(**without_weights(config["backbone"])).to("meta")
        report = apply_policy_(model, Policy.from_dict(config["policy"]), tuple(spec.counted[0]["input_size"]))
        blocks = [site.name.rsplit(".", 1)[0] for site in report.replacements]
        assert blocks == [f"blocks.{name}" for name in ("5.0", "5.1", "5.2", "5.3", "6.0") for _ in range(2)]
        kind = "one_block" if "policy.options.block_size=null" in row["overrides"] else config["policy"]["name"]
        layers = sum(size_of_block[kind](a, b) for a, b in widths)
        before, after = (counts[name][0]["parameters"] for name in ("baseline", row["id"]))
        assert before - after == weights - layers


def test_sample_standard_deviation():
    assert str(spread([1.0, 2.0, 3.0, 4.0])) == "2.50 ± 1.29 (n=4)"
    assert str(spread([1.0])) == "1.00 (n=1)"
    assert spread([-1.0, -2.0]).text("+.1f") == "-1.5 ± 0.7 (n=2)"


def test_parameter_tables_show_a_difference_where_there_is_one(tmp_path):
    spec = write_spec(tmp_path, "title: P\nkind: parameters\nrows: []")
    row = {"model": "m", "replaced": "r", "count": "trainable", "source": "s"}
    cost = {"parameters": 10, "parameters_with_bn_statistics": 12, "macs": 1e6, "wht_additions": 0}
    families = [
        {"backbone": "x", "input_size": [3, 8, 8], "policy": "none", "cost": cost, "sites": 0},
        {"backbone": "x", "input_size": [3, 8, 8], "policy": "half", "cost": {**cost, "parameters": 5}, "sites": 2},
        {"backbone": "x", "input_size": [3, 8, 8], "policy": "odd", "error": "matches nothing"},
    ]
    rows = [{**row, "published": 10, "ours": 10}, {**row, "published": 12, "ours": 10}]
    published, family = parameter_tables(spec, rows, families)
    assert [r["equal"] for r in published.rows] == ["yes", "no (-2)"]
    assert [r[3] for r in family.texts] == ["+0.0%", "-50.0%"]
    assert "`odd`" in family.notes[0]


def test_markdown_is_well_formed():
    table = Table("T", [Column("a"), Column("b", form="d"), Column("c")], [{"a": "x|y", "b": 1, "c": "line\nbreak"}])
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == ["| a | b | c |", "| :--- | ---: | :--- |", "| x\\|y | 1 | line break |"]


def test_latex_escapes_all_that_is_special():
    a, b, c = ["100% of a_b & {c} #1 $x ~ ^ \\ <|>", "3×3 → -50.3% ± 1 – 1-D …", 'say "yes" to `conv_1`']
    columns = [Column("a"), Column("b", form="d"), Column("c")]
    text = to_latex(Table("T", columns, [{"a": a, "b": b, "c": c}], "I.", ["n_1"]), "tab:t-1")
    lines = text.splitlines()
    row = lines[lines.index(r"\midrule") + 1]
    assert row == (
        r"100\% of a\_b \& \{c\} \#1 \$x \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}\textbar{}\textgreater{} & 3$\times$3 $\rightarrow$ $-$50.3\% $\pm$ 1 -- 1-D \ldots{} & "
        r"say ``yes'' to \texttt{conv\_1} \\"
    )
    assert r"\begin{tabular}{lrl}" in lines
    assert r"\caption{T. I.}" in lines
    assert r"\label{tab:t-1}" in lines
    assert lines[-2] == r"\par\footnotesize n\_1"


def test_every_format_shows_the_same_numbers():
    columns = [
        Column("a"),
        Column("n, all", "count", ","),
        Column("x", "x (M)", ".1f", 1e-6),
        Column("top1", form=".1f", spreads=True),
    ]
    rows = [
        {"a": "`x`, y", "n, all": 1_234_567, "x": 2_550_000, "top1": Spread(88.42, 0.285, 3, (0, 1, 4))},
        {"a": 'a "b"\nc', "n, all": "not run", "top1": Shown(0.25, ".0%", " of all")},
        {"n, all": Shown(24, "g", "×"), "top1": "not at hand"},
    ]
    table = Table("T", columns, rows)
    assert table.texts == [
        ["`x`, y", "1,234,567", "2.5", "88.4 ± 0.3 (n=3)"],
        ['a "b"\nc', "not run", "", "25% of all"],
        ["", "24×", "", "not at hand"],
    ]
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [
        ["a", "n, all", "x", "top1_mean", "top1_std", "top1_n", "top1_seeds"],
        ["x, y", "1234567", "2550000", "88.42", "0.285", "3", "0 1 4"],
        ['a "b"\nc', "", "", "0.25", "", "", ""],
        ["", "24", "", "", "", "", ""],
    ]
    assert "| `x`, y | 1,234,567 | 2.5 | 88.4 ± 0.3 (n=3) |" in to_markdown(table)
    assert r"1,234,567 & 2.5 & 88.4 $\pm$ 0.3 (n=3) \\" in to_latex(table, "t")
    assert [list(column.cells) for column in to_rich(table).columns][1] == ["1,234,567", "not run", "24×"]


def test_pareto_front():
    points = [(3, 90), (1, 80), (2, 70), (4, 90), (3, 85), (5, 91)]
    assert pareto_front(points) == [(1, 80), (3, 90), (5, 91)]


def test_curves_over_seeds(tmp_path):
    histories = [
        [{"epoch": 1, "test_top1": 10.0}, {"epoch": 2}, {"epoch": 3, "test_top1": 30.0}],
        [{"epoch": 1, "test_top1": 14.0}],
    ]
    records = [{**record("a", seed, 90.0), "history": history} for seed, history in enumerate(histories)]
    row = results_of(tmp_path, records).rows(write_spec(tmp_path, SPEC))[0]
    assert row.curve("test_top1") == {1: (12.0, pytest.approx(8**0.5), 2, ()), 3: (30.0, 0.0, 1, ())}


def test_figures_of_a_training_table(tmp_path):
    spec, results = write_spec(tmp_path, SPEC), results_of(tmp_path, [record("a", 0, 90.0)])
    for suffix in (".svg", ".png"):
        paths = draw_figures(spec, results, tmp_path / "figures", suffix)
        assert [path.name for path in paths] == [f"mine_pareto{suffix}", f"mine_curves{suffix}"]
        assert all(path.stat().st_size > 5000 for path in paths)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"study", "verdicts"}))
def test_tables_that_were_not_made_name_their_command(tmp_path, kind):
    spec = write_spec(tmp_path, f"title: Mine\nkind: {kind}\nrows: []")
    with pytest.raises(TableError, match=r"make reproduce-table TABLE=mine"):
        stored_tables(spec, results_of(tmp_path))


def test_a_damaged_file_of_measurements_is_named(tmp_path):
    spec = write_spec(tmp_path, "title: Mine\nkind: speed\nrows: []")
    for content in ("{", "[]", "\xff"):
        (tmp_path / "mine.json").write_text(content, encoding="latin1")
        with pytest.raises(RecordError, match=r"mine\.json can't be read .*; repair or delete it"):
            stored_tables(spec, results_of(tmp_path))


def test_readme_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: t -->\nold\n<!-- end -->\nafter <!-- end -->\n")
    rows = [{"id": "one", "a": "1", "b": "2"}, {"id": "two", "a": "3", "b": "4"}]
    table = Table("T", [Column("a"), Column("b")], rows, "Intro.", ["Note."])

    def spec(name="t", **front):
        return TableSpec(name, "T", "training", (), front=front)

    update_page(readme, spec(), [table])
    update_page(readme, spec(), [table])
    text = readme.read_text()
    block = "| a | b |\n| :--- | :--- |\n| 1 | 2 |\n| 3 | 4 |"
    assert text == f"before\n<!-- table: t -->\n{block}\n<!-- end -->\nafter <!-- end -->\n"
    update_page(readme, spec("other"), [table])
    assert readme.read_text() == text
    update_page(readme, spec(columns=["b"], rows=["two"]), [table])
    assert "-->\n| b |\n| :--- |\n| 4 |\n<!--" in readme.read_text()
    with pytest.raises(TableError, match="front names 'three'"):
        update_page(readme, spec(rows=["three"]), [table])
    readme.write_text("<!-- table: t -->\n")
    with pytest.raises(UserError, match="end"):
        update_page(readme, spec(), [table])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: x\nkind: other\nrows: []", "unknown kind"),
        ("title: x\nkind: training\nrows: [{label: a}]", "id of its own"),
        ("title: x\nkind: training\nrows: [{id: a}, {id: a}]", "id of its own"),
        ("title: x\nkind: training\nrows: []\ncolour: red", "colour"),
        ("title: [", "no specification"),
        ("title: x\ntitle: y\nkind: training\nrows: []", "'title' stands there twice"),
        ("[]", "no specification"),
        ("title: x\nkind: training\nrows: 3", "no specification"),
        ("title: x\nkind: training\nrows: [3]", "every row needs an id"),
        ("title: x\nkind: training", "no specification"),
        ("title: x\nkind: training\nrows: [{id: a/b}]", "row 'a/b' can't name a record"),
        ("title: x\nkind: training\nrows: [{id: 1}]", "row 1 can't name a record"),
        ("title: x\nkind: training\nrows: [{id: a, seeds: 3}]", "row 'a': seeds needs a list, got 3"),
        (
            "title: x\nkind: training\nrows: [{id: a, overrides: policy=none}]",
            "overrides needs a list, got 'policy=none'",
        ),
        ("title: x\nkind: training\nrows: [{id: a, overrides: [seed=5]}]", "seed=5 does nothing; write seeds:"),
    ],
)
def test_malformed_specifications(tmp_path, text, words):
    with pytest.raises(TableError, match=words):
        write_spec(tmp_path, text)


def test_what_a_row_of_a_training_table_may_leave_out(tmp_path):
    (row,) = write_spec(tmp_path, "title: x\nkind: training\nrows: [{id: a}]").rows
    assert (row["label"], list(row["overrides"])) == ("a", [])


def test_every_kind_is_measured():
    assert set(MEASURE) == set(KINDS)


def test_unknown_tables_list_the_known_ones():
    with pytest.raises(TableError, match="digits"):
        load_spec(EXPERIMENTS, "nothing")


@pytest.mark.parametrize("name", table_names(EXPERIMENTS))
def test_shipped_specifications(name):
    spec = load_spec(EXPERIMENTS, name)
    for row in spec.rows:
        published = row.get("published")
        if isinstance(published, dict):
            assert published["source"]  # no number without its source
        elif published is not None:
            assert row["source"]


@pytest.mark.parametrize("name", table_names(EXPERIMENTS))
def test_introductions_state_no_results(name):
    assert not re.search(r"\d+ points|\d %", load_spec(EXPERIMENTS, name).intro.replace("80 % for training", ""))


@pytest.mark.parametrize("name", table_names(EXPERIMENTS))
def test_results_hold_what_the_measurements_say(name, tmp_path):
    spec = load_spec(EXPERIMENTS, name)
    write_tables(tmp_path, name, stored_tables(spec, SHIPPED), command_for(spec))
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in made} == {".md", ".tex", ".csv"}
    for path in made:
        assert path.read_bytes() == (ROOT / "results" / path.relative_to(tmp_path)).read_bytes()
        if path.suffix == ".tex":
            assert path.read_text().isascii()  # every character that our tables use is one that LaTeX is told about
            assert "`" not in path.read_text().split("\n", 1)[1].replace("``", "")
