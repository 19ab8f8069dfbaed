"""Random seeds: whatever is random in epoch e of a run is drawn from (seed, e), so that a run can be resumed there."""

import random

import numpy as np
import torch


def mix_seeds(*entropy: int) -> int:
    """One seed of 32 bits from several numbers (at least 0); neighbouring numbers have nothing in common."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, NumPy and PyTorch from the run's seed and the epoch."""
    mixed = mix_seeds(seed, epoch)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
