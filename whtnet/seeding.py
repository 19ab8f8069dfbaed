"""Random seeds: whatever is random in epoch e of a run is drawn from (seed, e), so that a run can be resumed there."""

import random
from collections.abc import Callable

import numpy as np
import torch


def mix_seeds(*entropy: int) -> int:
    """One seed of 32 bits from several numbers (at least 0); neighbouring numbers have nothing in common."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def random_states() -> Callable[[], None]:
    """What sets the global generators of Python, NumPy and PyTorch (on the CPU) back to where they are now."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def restore() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    return restore


def seed_everything(seed: int, epoch: int = 0) -> None:
    """Seed Python, NumPy and PyTorch from the run's seed and the epoch."""
    mixed = mix_seeds(seed, epoch)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
