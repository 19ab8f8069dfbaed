"""Draw the figures of the guide from the layers themselves: python scripts/draw_docs.py [FOLDER]."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

import whtnet
from whtnet.data import load_dataset
from whtnet.thresholds import smooth_threshold, soft_threshold

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"


def hadamard() -> Figure:
    """The matrix of order 16, both orders of its rows."""
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.3), layout="constrained")
    for ax, order in zip(axes, ("natural", "sequency"), strict=True):
        ax.imshow(whtnet.hadamard_matrix(16, order=order), cmap="gray", vmin=-1, vmax=1)
        ax.set(title=f"{order} order", xticks=[], yticks=[0, 15])
    return figure


def thresholds() -> Figure:
    """Both thresholdings for T = 0.5."""
    figure, ax = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
    x = torch.linspace(-2.5, 2.5, 501)
    for name, function in (("smooth", smooth_threshold), ("soft", soft_threshold)):
        ax.plot(x, function(x, torch.tensor(0.5)), label=name)
    ax.plot(x, x, color="gray", linewidth=0.7, linestyle=":", label="identity")
    ax.set(xlabel="coefficient", ylabel="thresholded, T = 0.5")
    ax.legend(frameon=False)
    return figure


def layer2d() -> Figure:
    """A digit, its spectrum in sequency order, what a threshold of 0.2 leaves of it, and that transformed back."""
    digits = load_dataset("digits")
    image = digits.train.images[0, 0, ::4, ::4].float() / 255
    spectrum = whtnet.fwht2(image, order="sequency")
    left = soft_threshold(spectrum, torch.tensor(0.2))
    panels = {
        "map": image,
        "spectrum": spectrum,
        f"thresholded: {(left != 0).sum()} of 64": left,
        "back": whtnet.fwht2(left, order="sequency"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        limit = values.abs().max()
        spectral = title.startswith(("spec", "thres"))
        ax.imshow(values, cmap="RdBu" if spectral else "gray", vmin=-limit if spectral else 0, vmax=limit)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


def main(folder: Path) -> None:
    """Write all figures as SVG; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"svg.hashsalt": "whtnet", "font.size": 9})
    for draw in (hadamard, thresholds, layer2d):
        draw().savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")
        plt.close("all")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
