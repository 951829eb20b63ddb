"""Who this process is among those that torchrun or Accelerate started; and what the first of them decides for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dumbo.errors import DumboError

if TYPE_CHECKING:
    from dumbo.config.arguments import TrainerArguments

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """The place of this process: `rank` of `world_size`; a process on its own is rank 0 of 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process prints, tracks and writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Launch:
        """Read the variables that every launcher sets."""
        return cls(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))

    def connect(self, arguments: TrainerArguments) -> None:
        """Open the process group, where there are several processes, as the trainer will expect it."""
        if self.world_size == 1:
            return
        # PyTorch's C++ half warns on every rank; its errors still come. It reads this when it is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from datetime import timedelta

        from accelerate import PartialState

        timeout = timedelta(seconds=arguments.ddp_timeout)
        PartialState(cpu=arguments.use_cpu, backend=arguments.ddp_backend, timeout=timeout)

    def decide(self, choose: Callable[[], T]) -> T:
        """What `choose` returns or raises on the first process, on all of them; `connect` goes before."""
        if self.world_size == 1:
            return choose()
        from torch import distributed

        box: list[T | DumboError] = []
        if self.is_first:
            try:
                box = [choose()]
            except DumboError as error:
                box = [error]
        else:
            box = [DumboError()]
        distributed.broadcast_object_list(box, src=0)
        if isinstance(box[0], DumboError):
            raise box[0]
        return box[0]

    def disconnect(self) -> None:
        """Close the process group, so that no process waits for one that has gone."""
        if self.world_size == 1:
            return
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
