"""Where curves go: `metrics.csv` in a run's folder (`curves`), and a dashboard (`sink`): wandb or TensorBoard."""

from typing import Any

from whtnet.settings import check_arguments, defaults_of, unknown_setting
from whtnet.tracking.curves import put_epoch, write_curves
from whtnet.tracking.sink import Answers, NullSink, RunInfo, Sink, SinkError, best_and_last
from whtnet.tracking.tensorboard_sink import TensorBoardSink
from whtnet.tracking.wandb_sink import WandbSink

__all__ = [
    "Answers",
    "NullSink",
    "RunInfo",
    "Sink",
    "SinkError",
    "TensorBoardSink",
    "WandbSink",
    "best_and_last",
    "make_sink",
    "put_epoch",
    "write_curves",
]


def make_sink(name: str, **options: Any) -> Sink:
    """Build the sink of a configuration in configs/logger/.

    Raises:
        SinkError: for an unknown name, an option that it lacks, or a value that can't be.
    """
    sinks: dict[str, Any] = {"wandb": WandbSink, "tensorboard": TensorBoardSink, "none": NullSink}
    if name not in sinks:
        raise SinkError(f"unknown logger {name!r}; choose one of {', '.join(sinks)}")
    known = defaults_of(sinks[name])
    for option in options:
        if option not in known:
            raise SinkError(unknown_setting(f"logger.{option}", [f"logger.{other}" for other in known]))
    check_arguments(sinks[name].__init__, options, "logger", SinkError)
    return sinks[name](**options)
