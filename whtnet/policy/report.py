"""What a policy did to a model, as data and as tables to read."""

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from whtnet.cost import Cost

Rows = Sequence[Sequence[str]]

_TOTALS = {
    "parameters": "parameters",
    "parameters with BN statistics": "parameters_with_bn_statistics",
    "MACs": "macs",
    "additions of WHTs": "wht_additions",
}


@dataclass(frozen=True)
class Replacement:
    """One replaced site, for the report."""

    name: str
    kind: str
    layer: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class Report:
    """What a policy did to a model, and what the model costs before and after.

    Attributes:
        policy: the policy's name.
        architecture: the model's class.
        input_size: one image, (C, H, W).
        replacements: the replaced sites in the order of the forward pass.
        before: cost of the model as it was.
        after: cost of the model as it is now.
    """

    policy: str
    architecture: str
    input_size: tuple[int, ...]
    replacements: tuple[Replacement, ...]
    before: Cost
    after: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = asdict(self)
        for key, cost in (("before", self.before), ("after", self.after)):
            data[key]["parameters_with_bn_statistics"] = cost.parameters_with_bn_statistics
        return data

    @property
    def notices(self) -> list[str]:
        """What should not be overlooked: layers over a map where there is nothing for them to do."""
        points = [site for site in self.replacements if site.layer.endswith("2d") and site.input_shape[1:] == (1, 1)]
        if not points:
            return []
        return [
            f"{len(points)} of the {self.count} have maps of 1×1, where a 2-D layer transforms nothing; "
            "larger images, or backbone.stem=cifar for a network of torchvision or timm, keep the maps larger"
        ]

    @property
    def title(self) -> str:
        """Network, image and policy in a line."""
        return f"{self.architecture}, {_size(self.input_size)}, policy {self.policy}"

    @property
    def sites(self) -> Rows:
        """The replaced sites as a table of texts, its headings first."""
        rows = [
            [
                site.name,
                site.kind,
                site.layer,
                f"{_size(site.input_shape)} → {_size(site.output_shape)}",
                f"{site.parameters_before:,} → {site.parameters_after:,}",
            ]
            for site in self.replacements
        ]
        return [["site", "kind", "layer", "map in → out", "parameters before → after"], *rows]

    @property
    def totals(self) -> Rows:
        """What the model costs as a table of texts, its headings first."""
        rows = []
        for label, name in _TOTALS.items():
            before, after = getattr(self.before, name), getattr(self.after, name)
            rows.append([label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}" if before else ""])
        return [["total", "before", "after", "change"], *rows]

    @property
    def count(self) -> str:
        """How many sites were replaced, in words."""
        return f"{len(self.replacements)} site{'' if len(self.replacements) == 1 else 's'} replaced"

    def __str__(self) -> str:
        """The tables as text, numbers to the right."""
        sites = [_text(self.sites, right=(4,)), ""] if self.replacements else []
        return "\n".join([self.title, "", *sites, self.count, "", _text(self.totals, right=(1, 2, 3))])

    def _repr_html_(self) -> str:
        """The tables for a notebook."""
        sites = _html(self.sites, right=(4,)) if self.replacements else ""
        return f"<p>{html.escape(self.title)}</p>{sites}<p>{self.count}</p>{_html(self.totals, right=(1, 2, 3))}"


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _text(rows: Rows, right: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        padded = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(cells)]
        return "  ".join(padded).rstrip()

    headings, *rest = map(line, rows)
    return "\n".join([headings, "  ".join("─" * width for width in widths), *rest])


def _html(rows: Rows, right: Sequence[int]) -> str:
    def line(row: Sequence[str], tag: str) -> str:
        sides = ["right" if i in right else "left" for i in range(len(row))]
        cells = zip(row, sides, strict=True)
        return "".join(f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>' for cell, side in cells)

    headings, *rest = rows
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rest)
    return f"<table><thead><tr>{line(headings, 'th')}</tr></thead><tbody>{body}</tbody></table>"
