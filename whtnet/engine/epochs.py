"""The epochs of a run: steps over the training set, then accuracies."""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from whtnet import distributed
from whtnet.data import Loaders
from whtnet.engine.config import TrainConfig
from whtnet.engine.cuda_graph import recorded
from whtnet.engine.evaluate import evaluate
from whtnet.engine.global_batch import GlobalBatch
from whtnet.engine.loss import Loss, NonFiniteLossError
from whtnet.engine.mixing import Mixing
from whtnet.engine.optimisation import clip_gradients_, learning_rate, make_schedule
from whtnet.engine.precision import mixed_precision
from whtnet.engine.state import PartOfEpoch, State
from whtnet.modules import train_
from whtnet.preemption import PreemptedError
from whtnet.seeding import seed_everything
from whtnet.settings import ConfigError

_LOSS_CHECK_STEPS = 50  # reading the loss waits for a GPU, so it is looked at this often, and at the end of an epoch


@dataclass
class Epochs:
    """All that the epochs of a run need; attributes as the arguments of :func:`whtnet.engine.fit`."""

    state: State
    loaders: Loaders
    config: TrainConfig
    device: torch.device
    seed: int
    loss: Loss
    checkpoint: Path | None
    should_stop: Callable[[], bool]
    on_step: Callable[[dict[str, float]], None]
    on_progress: Callable[[float, str], None]
    epochs_before: int
    epochs_in_all: int

    def __post_init__(self) -> None:
        self.autocast = self.config.autocast_dtype(self.device)
        self.steps = len(self.loaders.train)
        self.batch_size = self.loaders.train.batch_size
        self.schedule = make_schedule(self.config, self.state.optimizer, self.steps)
        self.mixing = Mixing(self.config, self.batch_size) if self.config.mixup or self.config.cutmix else None
        self.model = self.state.model
        self.whole_batch: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if distributed.world_size() > 1:
            with distributed.conversation():
                self.model = DistributedDataParallel(self.model)
            self.whole_batch = GlobalBatch(self.batch_size)

    @contextlib.contextmanager
    def passes(self) -> Iterator[None]:
        """What surrounds all epochs."""
        with _one_value_told(self.batch_size):
            if not self.config.cuda_graph:
                yield
                return
            train_(self.state.model)
            with recorded(self.model, self.loaders.train.first_images(1)[0], self.autocast):
                yield

    def train_epoch(self) -> dict[str, float]:
        """Train the state's next epoch, or what is left of it; returns its metrics.

        Raises:
            NonFiniteLossError: if the loss is NaN or infinite.
            PreemptedError: when ``should_stop`` said so.
        """
        state, config = self.state, self.config
        started = time.perf_counter()
        part = self._begin_epoch()
        for images, labels in self.loaders.train:
            self.schedule.step_update(state.epoch * self.steps + part.steps)
            images, shares = self._mixed(images, part.steps)
            part.totals += self._step(images, labels, shares)
            part.steps += 1
            if part.steps % _LOSS_CHECK_STEPS == 0 or part.steps == self.steps or config.dry_run:
                self._tell(part)
            self.on_progress((state.epoch + part.steps / self.steps) / config.epochs, self._status())
            if config.dry_run:
                break
            if distributed.anywhere(self.should_stop()):
                self._leave(part, time.perf_counter() - started)
        totals = distributed.all_reduce(part.totals).tolist()  # waits for the device, so that the time below is true
        seconds = part.seconds + time.perf_counter() - started
        count = part.steps * self.batch_size
        metrics = {
            "epoch": state.epoch + 1,
            "lr": learning_rate(state.optimizer),
            "train_loss": totals[0] / count,
            "train_top1": 100 * totals[1] / count,
            "gradient_norm": totals[2] / part.steps,
            "images_per_s": count / seconds,
            "seconds": seconds,
        }
        state.epoch += 1
        return metrics

    def _begin_epoch(self) -> PartOfEpoch:
        """Go to where the epoch begins, or to where it was left."""
        state = self.state
        seed_everything(self.seed, state.epoch)
        part, state.part = state.part or PartOfEpoch(0, torch.zeros(3)), None
        for generator, random in zip(self._generators(), part.random, strict=False):  # it may have been left on a GPU
            generator.set_state(random)
        if not distributed.is_main_process():
            part.totals.zero_()  # the first process's has everyone's
        part.totals = part.totals.to(self.device)
        self.loaders.train.set_epoch(state.epoch, part.steps)
        train_(state.model)
        self.schedule.step_update(state.epoch * self.steps + max(part.steps - 1, 0))  # none may be left that sets it
        self.told = part.steps, distributed.all_reduce(part.totals)[0].item()
        return part

    def _mixed(self, images: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        return self.mixing(images, self.seed, self.state.epoch, step) if self.mixing else (images, None)

    def _step(self, images: Tensor, labels: Tensor, shares: Tensor | None) -> Tensor:
        """Take a step; returns what it adds to :attr:`PartOfEpoch.totals`, of this process's images."""
        state = self.state
        with mixed_precision(self.device, self.autocast), self.whole_batch:
            logits = self.model(images)
            wanted = self.loss.teacher_logits(images)
        targets = labels if shares is None else shares @ F.one_hot(labels, logits.shape[1]).to(shares.dtype)
        loss = self.loss(logits.float(), targets, wanted)
        state.optimizer.zero_grad(set_to_none=True)
        with distributed.conversation():  # DDP averages over processes; what is wanted is the mean over images
            (loss * (distributed.world_size() * len(labels) / self.batch_size)).backward()
        norm = clip_gradients_(state.model, self.config.clip_grad)  # the same in all processes, which share it here
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        correct = (logits.detach().argmax(1) == (labels if shares is None else targets.argmax(1))).sum()
        return torch.stack([loss.detach() * len(labels), correct, norm / distributed.world_size()])

    def _leave(self, part: PartOfEpoch, seconds: float) -> None:
        self._check_finite(part)
        random = [generator.get_state() for generator in self._generators()]
        self.state.part = PartOfEpoch(part.steps, distributed.all_reduce(part.totals), part.seconds + seconds, random)
        raise PreemptedError(f"stopped on request in epoch {self._epoch}, after step {part.steps} of {self.steps}")

    def _generators(self) -> list[torch.Generator]:
        if self.device.type != "cuda":
            return [torch.default_generator]
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        return [torch.default_generator, torch.cuda.default_generators[index]]

    def evaluate_epoch(self) -> dict[str, float]:
        """Loss and accuracy on the test set, and on the held-out part if there is one."""
        max_batches = 1 if self.config.dry_run else None
        metrics: dict[str, float] = {}
        for split in ("test", "holdout"):
            loader = getattr(self.loaders, split)
            if loader is not None:
                result = evaluate(self.state.evaluated, loader, autocast=self.autocast, max_batches=max_batches)
                metrics |= {f"{split}_{name}": value for name, value in result.items()}
        return metrics

    def _tell(self, part: PartOfEpoch) -> None:
        """Check the loss, and tell its mean since the last time."""
        loss = self._check_finite(part)
        (steps, before), self.told = self.told, (part.steps, loss)
        self.on_step(
            {
                "epoch": self.state.epoch + part.steps / self.steps,
                "loss": (loss - before) / ((part.steps - steps) * self.batch_size),
                "lr": learning_rate(self.state.optimizer),
            }
        )

    def _check_finite(self, part: PartOfEpoch) -> float:
        """The sum of the losses so far."""
        loss = distributed.all_reduce(part.totals)[0].item()

        def check() -> None:
            if not math.isfinite(loss):
                kept = "the last checkpoint before that is kept" if self._has_checkpoint() else "nothing was kept"
                raise NonFiniteLossError(
                    f"the loss became {loss} in epoch {self._epoch}, by step {part.steps} of {self.steps}; "
                    f"{kept}. Try a lower trainer.lr, trainer.clip_grad=1, trainer.precision=fp32, or "
                    "policy.options.clamp=true"
                )

        distributed.from_main_process(check)  # and so it is said once
        return loss

    def _has_checkpoint(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.exists()

    def _status(self) -> str:
        last = self.state.history[-1] if self.state.history else {}
        accuracy = f", test {last['test_top1']:.2f} %" if "test_top1" in last else ""
        return f"epoch {self._epoch}/{self.epochs_in_all}{accuracy}"

    @property
    def _epoch(self) -> int:
        """The one that runs, counted over the run from 1."""
        return self.epochs_before + self.state.epoch + 1


@contextlib.contextmanager
def _one_value_told(batch_size: int) -> Iterator[None]:
    """Turn what PyTorch's normalisations say about too few values into an error that names the setting."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # the latter of a compiled model
        if not re.search(r"Expected more than 1 .* when training", str(error)):
            raise
        raise ConfigError(
            f"a batch of {batch_size} leaves a normalisation layer one value per channel, where maps are 1×1; raise "
            "trainer.batch_size (a training set must have as many images), or take larger images"
        ) from error
