"""What two processes compute, for test_distributed.py: ``torchrun --nproc-per-node 2 distributed_cases.py FILE``."""

import contextlib
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from whtnet import apply_policy_, distributed
from whtnet.backbones import CifarResNet
from whtnet.data import load_dataset
from whtnet.engine import TrainConfig, epochs, fit
from whtnet.engine.global_batch import GlobalBatch

CPU = torch.device("cpu")
BATCH = 15  # an odd number: the processes' shares differ


def make_model():
    torch.manual_seed(0)
    model = CifarResNet(8, num_classes=4)
    apply_policy_(model, "paper", (3, 8, 8))
    model.fc = nn.Sequential(nn.Dropout(0.2), StochasticDepth(0.2, "row"), model.fc)
    return model


def history(**settings):
    """Metrics of three epochs."""
    data = load_dataset("synthetic", size=8, train_size=96, test_size=31)
    loaders = data.loaders(batch_size=BATCH, eval_batch_size=15, device=CPU, seed=1)
    config = TrainConfig(**{"epochs": 3, "lr": 0.05, "precision": "fp32", "ema_decay": 0.9, **settings})
    return fit(make_model(), loaders, config, device=CPU, seed=1).history


def history_with_local_batches():
    """The same, but with batch norm and dropout of each process's own."""
    epochs.GlobalBatch = lambda batch_size: contextlib.nullcontext()
    return history()


def batch_norm_error(shape, dtype, channels_last=False):
    """Largest difference to batch norm of the whole batch in one process: output, gradients, running statistics."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(BATCH, *shape, generator=generator, dtype=dtype) * 3 + 1 for _ in range(2))
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    rows = distributed.share(BATCH)
    results = []
    for part, mode in ((slice(None), contextlib.nullcontext()), (rows, GlobalBatch(BATCH))):
        norm = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[0], momentum=0.3, dtype=dtype)
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
        mine = x[part].detach().clone().requires_grad_()
        with mode:
            y = norm(mine)
        (F.gelu(y) * w[part]).sum().backward()
        gradients = [norm.weight.grad, norm.bias.grad]
        if part is rows:
            gradients = [distributed.all_reduce(g) for g in gradients]
            results.append([y, mine.grad, *gradients, norm.running_mean, norm.running_var])
        else:
            results.append([y[rows], mine.grad[rows], *gradients, norm.running_mean, norm.running_var])
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


def main(path):
    """Write the results of all cases."""
    results = {
        "history": history(),
        "bf16": history(precision="bf16", channels_last=True),
        "batch_norm": [
            batch_norm_error((5, 4, 3), torch.float64),
            batch_norm_error((5, 4, 3), torch.float64, channels_last=True),
            batch_norm_error((7,), torch.float64),
        ],
        "local": history_with_local_batches(),
    }
    if distributed.is_main_process():
        path.write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
