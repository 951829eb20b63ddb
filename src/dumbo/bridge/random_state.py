"""The state of every generator of random numbers that a step may draw from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Of Python, NumPy and PyTorch, with all GPUs that were used."""

    python: Any
    numpy: Any
    cpu: Tensor
    gpus: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """The states as they are."""
        gpus = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else ()
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Set all of them back to this."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(list(self.gpus))
