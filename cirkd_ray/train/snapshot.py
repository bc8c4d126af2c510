"""Checkpoints off the training thread: a copy of the state on the host, written in the background."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.train.checkpoint import checkpoint_name, write_checkpoint
from cirkd_ray.train.patience import Patience


class Snapshot:
    """A run's state after one step, in memory of the host: training may go on while it is written.

    Args:
        state: what a checkpoint holds; nothing in it changes any more.
        patience: waits where it cannot be written for a while.
        written: called whenever the disk has taken another part of it.
        done: called with the step when all of it is written.
    """

    def __init__(
        self,
        state: dict[str, Any],
        patience: Patience | None = None,
        written: Callable[[], None] = lambda: None,
        done: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.state, self.patience, self.written, self.done = state, patience, written, done
        self.name = checkpoint_name(state["step"])

    def write(self, folder: Path) -> None:
        """Write the checkpoint `folder`, whole or not at all.

        Raises:
            OSError: as of `write_checkpoint`; with `patience`, a `StorageError`.
        """
        write = partial(write_checkpoint, folder, self.state, self.written)
        if self.patience is None:
            write()
        else:
            self.patience.write(write)
        self.done(self.state["step"])


class HostCopy:
    """Copies nested mappings and lists of tensors to the host.

    Tensors of a CUDA device go to pinned memory, which is kept for the next copy: the one before must have
    been written by then. The host waits for the device once a copy.
    """

    def __init__(self) -> None:
        self.pinned: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, state: dict[str, Any]) -> dict[str, Any]:
        """The same values, which share no memory with `state`."""
        streams: set[torch.device] = set()
        copied: dict[str, Any] = self._copy(state, (), streams)
        for device in streams:
            torch.cuda.current_stream(device).synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...], streams: set[torch.device]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place, streams)
        if isinstance(value, Mapping):
            items = {key: self._copy(item, (*place, key), streams) for key, item in value.items()}
            if not hasattr(value, "_metadata"):
                return items
            copied = OrderedDict(items)
            copied._metadata = value._metadata  # type: ignore[attr-defined]  # versions of a module's parts
            return copied
        if isinstance(value, (list, tuple)):
            return type(value)(self._copy(item, (*place, at), streams) for at, item in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, place: tuple[Any, ...], streams: set[torch.device]) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        held = self.pinned.get(place)
        if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
            held = self.pinned[place] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        streams.add(tensor.device)
        return held.copy_(tensor, non_blocking=True)


class BackgroundWriter:
    """Runs one call at a time in a thread of its own; an error is raised where it is waited for."""

    def __init__(self) -> None:
        self.pending: Future[None] | None = None

    def start(self, call: Callable[[], None]) -> Future[None]:
        """Wait for the call before, then begin this one.

        Raises:
            Exception: what the call before raised.
        """
        self.settle()
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.pending = done
        # In the caller's context: it may wait, and look whether the caller's command was asked to stop.
        threading.Thread(target=copy_context().run, args=(run,), name="checkpoint", daemon=True).start()
        return done

    def check(self) -> None:
        """`settle`, where there is nothing to wait for."""
        if self.pending is not None and self.pending.done():
            self.settle()

    def settle(self) -> None:
        """Wait until nothing is being written.

        Raises:
            Exception: what the last call raised; once.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()
