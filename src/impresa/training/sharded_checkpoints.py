"""Checkpoints in parts: a folder that all processes write together and that any number of them reads.

`torch.distributed.checkpoint` writes the tensors that are shared out, each process its part into a file of safetensors.
`state.pt` has everything else, and in the place of each of those tensors its outline: a tensor on the device "meta".
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impresa.errors import CheckpointError
from impresa.files import move_aside, remove, replacing_folder
from impresa.training.distributed import Group
from impresa.training.shared import is_shared, part_of, room_for

STATE = "state.pt"
FILES, FOLDER = "files", "folder"
"""Entries of the content beside those of any checkpoint: name and size of each file, and where it has been read."""
ALONE = Group(torch.device("cpu"))
Place = tuple[str | int, ...]
"""Keys that lead to a tensor in the content."""


class PartWriter:
    """Writes the checkpoints of a group, one at a time, while its caller goes on.

    torch copies the tensors to the CPU's memory and writes them from a thread; in another one the processes then agree
    on how it went, and the first of them gives the checkpoint its name. Both threads talk over `Group.aside`, one after
    the other, and `wait` not at all: a process that ends alone leaves no other waiting for it.
    """

    def __init__(self, group: Group) -> None:
        self._group, self._aside = group, group.aside()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None

    def begin(self, path: Path, content: Mapping[str, Any], then: Callable[[], None] = lambda: None) -> None:
        """Begin to write what the content is now; all processes make this call, with the same one but for their parts.

        One process alone writes all tensors but single numbers as a single part, without a copy, and is done then.

        Args:
            path: of the checkpoint, which appears when it is whole.
            content: of the checkpoint.
            then: called in the first process, in a thread, when the checkpoint is there.

        Raises:
            OSError: of this checkpoint, in all processes; or of the one before, see `wait`.
        """
        self.wait()
        with ExitStack() as stack:
            folder = Path(self._group.by_first(lambda: str(stack.enter_context(replacing_folder(path)))))
            parts = dict(_parts(content, self._group))
            state = _rest(content, parts) if self._group.is_main else {}
            written = self._save({_name(place): tensor for place, tensor in parts.items()}, folder)
            replacing = stack.pop_all()

        def appear() -> None:
            with replacing:
                _end(written)
                files = {file.name: file.stat().st_size for file in folder.iterdir()}
                with (folder / STATE).open("wb") as file:
                    torch.save({**state, FILES: files}, file)
                before = move_aside(path, folder)
            if before is not None:
                remove(before)
            then()

        if self._group.world_size == 1:
            appear()
        else:
            self._under_way = self._thread.submit(self._finish, written, appear)

    def wait(self) -> None:
        """Wait until what was begun is there.

        Raises:
            OSError: a process could not write it; in all of them, once.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _save(self, tensors: dict[str, Any], folder: Path) -> Callable[[], object]:
        """A function that returns when the parts are written, or raises what torch does."""
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint import HuggingFaceStorageWriter

        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        if self._group.world_size == 1:
            return partial(checkpoint.save, tensors, storage_writer=writer, no_dist=True)
        with _quiet():
            written = checkpoint.async_save(tensors, storage_writer=writer, process_group=self._aside.connections)
        assert isinstance(written, Future)  # of a writer that has copied the tensors already
        return written.result

    def _finish(self, written: Callable[[], object], appear: Callable[[], None]) -> None:
        with suppress(BaseException):  # which `appear` meets again
            written()  # until here the connections are torch's
        self._aside.by_first(appear)


def write_parts(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint of one process as one of parts.

    Raises:
        OSError: it cannot be written.
    """
    with _quiet():
        PartWriter(ALONE).begin(path, content)


def outlined(folder: Path, state: Any) -> dict[str, Any]:
    """The content of a checkpoint, made of that of its `state.pt`, with outlines of the tensors in the parts beside it,
    which `whole_content` reads.

    Raises:
        ValueError: a part is missing or has another size, or they are too small for what is outlined.
    """
    files = state.get(FILES) if isinstance(state, dict) else None
    if not isinstance(files, dict):
        raise ValueError(f"{STATE} holds something else")
    for name, size in files.items():
        file = folder / Path(str(name)).name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{name} is missing or is not whole")
    if sum(tensor.nbytes for _, tensor in _tensors(state) if tensor.is_meta) > sum(files.values()):
        raise ValueError(f"its parts are smaller than its {STATE} says")  # before memory is taken for them
    return {**state, FOLDER: folder}


def whole_content(
    content: Mapping[str, Any], like: Callable[[Place], Tensor | None] = lambda _: None
) -> dict[str, Any]:
    """The content with its tensors in place of their outlines; as it is where it has none.

    Args:
        content: of `outlined`, or of a checkpoint in a single file.
        like: finds the tensor of which one at a place of the content takes the place: where that is shared out, each
            process reads its own part. Any other is read whole.

    Raises:
        CheckpointError: the files do not have what the outlines say.
    """
    found = {place: outline for place, outline in _tensors(content) if outline.is_meta}
    if not found:
        return dict(content)
    if FOLDER not in content:
        raise CheckpointError("checkpoint: is no usable one (it lacks its parts); remove it to resume from another")
    room = {place: room_for(outline, like(place)) for place, outline in found.items()}
    folder = content[FOLDER]
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with _quiet():
            targets: dict[str, Any] = {_name(place): tensor for place, tensor in room.items()}
            checkpoint.load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except OSError:
        raise
    except (Exception, CheckpointException) as error:  # torch raises those of safetensors, its own, and none of these
        fault = f"is no usable checkpoint (its parts are not those of its {STATE})"
        raise CheckpointError(f"{folder}: {fault}; remove it to resume from another") from error
    return _replaced(content, room)


def _end(written: Callable[[], object]) -> None:
    """Wait until the parts are written; raises what was wrong, a system's error if there is one."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        written()
    except CheckpointException as error:  # in each process, of all that failed
        faults = [fault for fault, _ in error.failures.values()]
        raise next((fault for fault in faults if isinstance(fault, OSError)), faults[0]) from error


def _rest(content: Mapping[str, Any], parts: Mapping[Place, Tensor]) -> dict[str, Any]:
    """A copy of the content on the CPU, with outlines in place of the parts."""
    own = {place: _outline(parts[place]) if place in parts else tensor.cpu() for place, tensor in _tensors(content)}
    return deepcopy(_replaced(content, own))  # the training adds to lists in it


def _parts(content: Mapping[str, Any], group: Group) -> Iterator[tuple[Place, Tensor]]:
    """The tensors that go into parts. A file has no two names for one tensor, as a model has for a head that is the
    embedding table."""
    seen: set[int] = set()
    for place, tensor in _tensors(content):
        if is_shared(tensor) if group.shares_model else tensor.ndim > 0:
            memory = part_of(tensor).data_ptr()
            yield place, tensor.clone() if memory in seen else tensor.contiguous()
            seen.add(memory)


def _tensors(content: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Each tensor and its place."""
    if isinstance(content, Tensor):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, (*place, key))


def _replaced(content: Any, tensors: Mapping[Place, Tensor], place: Place = ()) -> Any:
    """The content with other tensors at these places."""
    if isinstance(content, Mapping):
        return {key: _replaced(value, tensors, (*place, key)) for key, value in content.items()}
    return tensors.get(place, content)


def _name(place: Place) -> str:
    return ".".join(map(str, place))


def _outline(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch has to tell of each checkpoint."""
    torch_logger = logging.getLogger("torch.distributed.checkpoint")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    finally:
        torch_logger.setLevel(level)
