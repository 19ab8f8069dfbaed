"""What a training tells while it goes on, handed to its curves on disk, to a sink and to the caller."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from whtnet import distributed
from whtnet.data import ImageDataset, Loaders
from whtnet.inspection import layer_metrics
from whtnet.modules import evaluation_mode
from whtnet.tracking.curves import put_epoch, write_curves
from whtnet.tracking.sink import Answers, Sink

CURVES = "metrics.csv"
_LAYER_IMAGES = 64  # that layers are looked at with, after every epoch
_SAMPLES = 16


class Follower:
    """Follows one training; its methods are callbacks of :func:`whtnet.engine.fit`.

    Args:
        sink: of the run; in several processes the first one's is a real one.
        folder: of the run.
        dataset: that it trains on.
        loaders: batches.
        on_epoch: called with the metrics of each epoch, at last.
    """

    def __init__(
        self,
        sink: Sink,
        folder: Path,
        dataset: ImageDataset,
        loaders: Loaders,
        on_epoch: Callable[[dict[str, float]], None],
    ) -> None:
        self.sink, self.dataset, self.loaders, self._on_epoch = sink, dataset, loaders, on_epoch
        self.curves = folder / CURVES

    def on_step(self, metrics: dict[str, float]) -> None:
        """Hand on what is told within an epoch."""
        self.sink.log_step(metrics["epoch"], {name: value for name, value in metrics.items() if name != "epoch"})

    def on_network(self, epoch: int, network: nn.Module) -> None:
        """Hand on what the layers do after an epoch."""
        self.sink.log_layers(epoch, lambda: layer_metrics(network, self.images[:_LAYER_IMAGES]))

    def on_epoch(self, metrics: dict[str, float]) -> None:
        """Keep an epoch's metrics, and hand them on."""
        if distributed.is_main_process():
            put_epoch(self.curves, metrics)
        self.sink.log(int(metrics["epoch"]), metrics)
        self._on_epoch(metrics)

    def end(self, network: nn.Module, history: Sequence[dict[str, float]], checkpoint: Path) -> None:
        """Keep the whole history, and hand on what the trained network is and says.

        Of several processes none has all answers, so these are handed on by a single one only.
        """
        if distributed.is_main_process():
            write_curves(self.curves, history)
        if distributed.world_size() == 1:
            self.sink.show_answers(lambda: self._answers(network))
        self.sink.keep_model(checkpoint)

    @functools.cached_property
    def images(self) -> Tensor:
        """The first batch of the test set."""
        return next(iter(self.loaders.test))[0]

    def _answers(self, network: nn.Module) -> Answers:
        from whtnet.evaluation import collect, measure_logits  # they need torchmetrics, which takes its time

        with evaluation_mode(network):
            logits, labels = collect(network, self.loaders.test)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.dataset.mean, self.dataset.std))
        images = (self.images[:_SAMPLES].float().cpu() * std + mean).clamp(0, 1)
        return Answers(self.dataset.classes, logits, labels, measure_logits(logits, labels).confusion, images)
