"""The report of a policy as a person reads it."""

import re

import pytest
import torch

from whtnet import apply_policy_
from whtnet.backbones import build_backbone


@pytest.fixture(scope="module")
def report():
    return apply_policy_(build_backbone("resnet20"), "conv3x3")


def test_printed_it_is_a_table(report):
    title, _, headings, rule, *rows = str(report).splitlines()
    assert title == "CifarResNet, 3×32×32, policy conv3x3"
    assert headings.split("  ")[0] == "site"
    assert [len(part) for part in rule.split("  ")][-1] == len("parameters before → after")
    sites = [row for row in rows if row.startswith("layer")]
    assert [row.split()[0] for row in sites] == [site.name for site in report.replacements]
    assert {len(row) for row in sites} == {len(rule)}  # numbers stand to the right
    assert "9 sites replaced" in rows
    change = report.after.parameters / report.before.parameters - 1
    totals = next(row for row in rows if row.startswith("parameters  "))
    assert totals.split()[1:] == ["273,066", f"{report.after.parameters:,}", f"{change:+.1%}"]


def test_a_notebook_shows_html(report):
    page = report._repr_html_()
    cells = re.findall("<td[^>]*>(.*?)</td>", page)
    assert cells[0] == report.replacements[0].name
    assert len(cells) == 9 * 5 + 4 * 4
    assert f"{report.after.macs:,}" in cells


def test_names_are_no_markup():
    policy = {"name": "<b>", "rules": [{"match": "conv3x3", "replace": "FWHT2d", "where": {"nth": 2}}]}
    assert "policy &lt;b&gt;" in apply_policy_(build_backbone("resnet20"), policy)._repr_html_()


def test_without_replaced_sites_the_costs_remain():
    report = apply_policy_(build_backbone("resnet20"), "none")
    assert "0 sites replaced" in str(report)
    assert "site  " not in str(report)
    assert re.search(r"^parameters +273,066 +273,066 +\+0\.0%$", str(report), re.M)
    assert report._repr_html_().count("<table>") == 1


@pytest.mark.parametrize(("stem", "points"), [("imagenet", 2), ("cifar", 0)])
def test_maps_of_one_point_are_noticed(stem, points):
    with torch.device("meta"):
        report = apply_policy_(build_backbone("resnet18", stem=stem), "conv3x3", (3, 32, 32))
    assert sum(site.input_shape[1:] == (1, 1) for site in report.replacements) == points
    assert len(report.notices) == (points > 0)
    for notice in report.notices:
        assert notice.startswith("2 of the 8 sites replaced have maps of 1×1")
        assert "backbone.stem=cifar" in notice
