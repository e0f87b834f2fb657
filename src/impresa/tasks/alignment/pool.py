"""Several devices that embed together, each in a process of its own.

Batches go to whichever process is free, so that a slow device holds no other one up, and their embeddings come back in
the order of the inputs. What is sent is pickled here: torch's own way would need shared memory, which containers lack.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from impresa.errors import ConfigError, DataError, ImpresaError
from impresa.tasks.arguments import Named, kind
from impresa.tasks.devices import Device, usable_device

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel

Batch = list[Named]
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
_GRACE_S = 5.0


def checked_devices(devices: Sequence[Device]) -> list[torch.device]:
    """The devices of a pool, two or more. One may be named again: it then has several processes.

    Raises:
        ConfigError: they are no list of devices that can be used here, or fewer than two.
    """
    if not isinstance(devices, list | tuple):
        raise ConfigError(f"devices: got {kind(devices)}; give a list of them, or a single one as device=")
    if len(devices) < 2:
        raise ConfigError(f"devices: got {len(devices)}, which need no processes; give two, or device=")
    return [usable_device(device, f"devices[{i}]") for i, device in enumerate(devices)]


def embedded_by_all(
    model: EmbeddingModel, method: str, batches: Sequence[Batch], devices: Sequence[torch.device]
) -> Iterator[tuple[int, Tensor]]:
    """Number and embeddings (B, E) on the CPU of each batch, as soon as it is done.

    However this ends, by an error and ctrl-c too, the processes end with it.

    Args:
        model: what embeds; a copy of it is sent to each process.
        method: the name of its method that takes a batch.
        batches: the inputs.
        devices: one for each process.

    Raises:
        DataError: an input cannot be read or sent, the same as without processes.
        ConfigError: a process ended, or the model cannot be sent to one.
    """
    waiting = iter(enumerate(batches))
    with _started(model, method, devices[: len(batches)]) as connections:
        busy: dict[Any, int] = {}
        for connection in connections:
            _hand_out(connection, waiting, busy)
        while busy:
            for free in wait(list(busy)):
                assert isinstance(free, Connection)
                number = busy.pop(free)
                yield number, _answer(free)
                _hand_out(free, waiting, busy)


def _hand_out(connection: Connection, waiting: Iterator[tuple[int, Batch]], busy: dict[Any, int]) -> None:
    for number, batch in waiting:
        try:
            packed = pickle.dumps(batch)
        except Exception as error:  # pickle raises whatever an object does
            name = batch[0].name
            fault = f"cannot be sent to another process ({str(error).splitlines()[0]:.100})"
            raise DataError(f"{name}: its batch {fault}; give paths or images, or a single device") from error
        with suppress(*_GONE):  # reading the answer says so
            connection.send_bytes(packed)
        busy[connection] = number
        return


def _answer(connection: Connection) -> Tensor:
    try:
        found = connection.recv()
    except _GONE as error:
        fix = "a script that uses it begins with `if __name__ == '__main__':`; memory may be short as well"
        raise ConfigError(f"devices: a process ended without an answer; {fix}") from error
    if isinstance(found, BaseException):
        raise found
    return torch.from_numpy(found)


@contextmanager
def _started(model: EmbeddingModel, method: str, devices: Sequence[torch.device]) -> Iterator[list[Connection]]:
    """A connection to each of the processes, which have the model."""
    packed = BytesIO()
    try:
        torch.save(model, packed)
    except Exception as error:  # pickle raises whatever an object does
        fault = f"this model cannot be sent to another process ({str(error).splitlines()[0]:.100})"
        raise ConfigError(f"devices: {fault}; give a single device") from error
    context = multiprocessing.get_context("spawn")
    num_threads = max(torch.get_num_threads() // max(len(devices), 1), 1)
    processes, connections = [], []
    try:
        for device in devices:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, method, str(device), num_threads), daemon=True)
            connections.append(ours)
            process.start()
            processes.append(process)
            theirs.close()
        for connection in connections:
            with suppress(*_GONE):
                connection.send_bytes(packed.getbuffer())
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()


def _work(connection: Connection, method: str, device: str, num_threads: int) -> None:
    """Embed batches until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c reaches all of the group, and the parent ends this process
    torch.set_num_threads(num_threads)
    with suppress(*_GONE):
        packed = BytesIO(connection.recv_bytes())
        ready: EmbeddingModel | None = None
        while True:
            batch: Batch = pickle.loads(connection.recv_bytes())
            try:
                if ready is None:
                    # Not a file of others: the parent process wrote it into this pipe.
                    ready = torch.load(packed, map_location="cpu", weights_only=False)
                    ready.device = torch.device("cpu")
                    ready.to(device)
                    ready.model.eval()
                with torch.no_grad():
                    found: Any = getattr(ready, method)(batch).float().cpu().numpy()
            except ImpresaError as error:
                found = type(error)(*error.lines)
            except Exception as error:
                found = ConfigError(f"devices: {device} failed ({type(error).__name__}: {error!s:.200})")
            connection.send(found)
