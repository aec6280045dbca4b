"""Several processes that train one model on the same batches, each on some of their rows."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from interp.sites.sharding import is_fully_sharded
from interp.subject.batch import Batch
from interp.training.state import generators, set_generators

T = TypeVar("T")


class Processes:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone.

    Every method must be called by all of them. With one process, what is summed or shared is
    returned bit for bit.

    Processes that hold shards of one module do not share rows: each trains on all of them, and what
    is summed elsewhere is the same in all. Where they shared rows, those that send a token to an
    expert would wait for those that do not.

    Attributes:
        count: number of processes.
        rank: number of this process, from 0.
        sharded: whether they hold shards of one module.

    Args:
        module: the module that they train.
    """

    def __init__(self, module: nn.Module) -> None:
        from accelerate import Accelerator

        # One process trains where the model is; several have a device each. Where there is no GPU,
        # accelerate does not see the processes of `torchrun` as one group unless it is told to
        # use the CPU.
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_cpu = launched and not torch.accelerator.is_available()
        self._accelerator: Any = (
            Accelerator(cpu=True) if on_cpu else Accelerator(device_placement=launched)
        )
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.sharded = is_fully_sharded(module)
        self._divided = self.count > 1 and not self.sharded

    @property
    def main(self) -> bool:
        """Whether this is the process that measures and writes."""
        return bool(self._accelerator.is_main_process)

    def prepare(self, module: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """Places a module on this process's device, with the first process's weights and buffers.
        A single process leaves it where it is.

        Returns:
            The module and its optimizer.
        """
        from accelerate.utils import broadcast

        if self.sharded:
            # Dropout is that of one process if all draw the same.
            set_generators(self.from_first(generators()))
            return module, self._accelerator.prepare(optimizer)
        if self.count == 1:
            return self._accelerator.prepare(module, optimizer)
        # DistributedDataParallel would synchronize only what goes through its own forward, and a
        # subject also calls parts of its module. `evaluation_mode` places the module without it,
        # and `sum_gradients` does its work.
        placed = self._accelerator.prepare_model(module, evaluation_mode=True)
        with torch.no_grad():
            for tensor in (*placed.parameters(), *placed.buffers()):
                tensor.copy_(broadcast(tensor.detach().contiguous()))
        return placed, self._accelerator.prepare(optimizer)

    def share(self, batch: Batch) -> Batch:
        """Returns this process's rows of a batch.

        Raises:
            ValueError: there are fewer rows than processes.
        """
        if not self._divided:
            return batch
        if len(batch) < self.count:
            raise ValueError(
                f"a batch of {len(batch)} rows for {self.count} processes: "
                "expected at least one row each"
            )
        with self._accelerator.split_between_processes(torch.arange(len(batch))) as rows:
            return batch.rows(rows)

    def total(self, value: Tensor) -> Tensor:
        """Returns the sum of a tensor over processes that share rows, without its gradient."""
        value = value.detach()
        return self._accelerator.reduce(value, "sum") if self._divided else value

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this process's loss to that of every parameter."""
        self._accelerator.backward(loss)

    def clip(self, module: nn.Module, norm: float) -> None:
        """Scales the gradients down until their norm is at most `norm`."""
        self._accelerator.clip_grad_norm_(module.parameters(), norm)

    def sum_gradients(self, module: nn.Module) -> None:
        """Leaves in every parameter the sum of the gradients of processes that share rows.

        Of a sharded module, FSDP2 has left the mean over processes, which are all the same.
        """
        if not self._divided:
            return
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # An expert to which only one process sent a token has a gradient there alone: the others
        # must join its sum with zeros, or that process would wait forever. What no process used
        # keeps no gradient, because AdamW would decay it for a gradient of zeros.
        has_gradient = torch.tensor(
            [parameter.grad is not None for parameter in trained], device=self._accelerator.device
        )
        users_of_each = self.total(has_gradient.int()).tolist()
        for parameter, users in zip(trained, users_of_each, strict=True):
            if users:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.total(own)

    def from_first(self, value: T) -> T:
        """Returns the value of the first process."""
        from accelerate.utils import broadcast_object_list

        return value if self.count == 1 else broadcast_object_list([value])[0]

    def gather(self, value: T) -> list[T]:
        """Returns the value of each process, by rank."""
        from accelerate.utils import gather_object

        return [value] if self.count == 1 else gather_object([value])

    def wait(self) -> None:
        """Returns when every process has come here."""
        self._accelerator.wait_for_everyone()
