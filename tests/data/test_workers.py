"""Data workers: they tokenize, write batches where the main process reads them, and open each file once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Client
from multiprocessing.process import BaseProcess, current_process
from multiprocessing.resource_sharer import DupFd
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import shards_on_disk
from impresa.config import ExperimentConfig
from impresa.config.runs import prepare
from impresa.data import loading
from impresa.data.chat import PlainChat
from impresa.data.images import ImageTransform
from impresa.data.loading import WorkerLoader, as_it_is, leave_the_end_to_the_main_process
from impresa.data.preprocessing import stack_images, stack_kept
from impresa.data.sample import KeptImage, Sample
from impresa.data.sources import open_source
from impresa.data.sources.parquet import ParquetSource
from impresa.data.tokenizers import TextTokenizer
from impresa.training.distributed import Group
from impresa.training.loop import steps_of, train_step, validate
from impresa.training.parts import build_parts
from impresa.training.run import set_up
from killed import in_child
from pictures import numbered, png, write_jsonl
from tiny_run import tiny_experiment
from tiny_vlm import tiny_vlm

EXPERIMENTS = {"alignment": tiny_experiment, "answering": tiny_vlm}


def with_workers(config: ExperimentConfig, number: int = 1) -> ExperimentConfig:
    return prepare(replace(config, dataset=replace(config.dataset, num_workers=number, pin_memory=False)))


def elsewhere(main: int, read: list[int], before: Any) -> Any:
    """The same method, which notes that it was called in the main process."""

    def method(self: Any, *given: Any) -> Any:
        if os.getpid() == main:
            read.append(main)
        return before(self, *given)

    return method


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_the_main_process_tokenizes_nothing_while_it_trains(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_workers(EXPERIMENTS[kind]())
    parts, main = build_parts(config, None), os.getpid()
    read: list[int] = []
    for owner, name in ((TextTokenizer, "__call__"), (PlainChat, "encode")):
        monkeypatch.setattr(owner, name, elsewhere(main, read, getattr(owner, name)))
    training = set_up(config, parts, Group(torch.device("cpu")))
    for batches in islice(steps_of(training.train_loader, 1), 4):
        train_step(training, batches)
    validate(training)
    assert read == []  # what the workers have read, they have noted in lists of their own
    parts.data.train_loader().dataset.__getitems__([(0, 0), (0, 1)])
    assert set(read) == {main}  # and the main process would be found out


class Collating:
    """Batches of images, of sounds' features or of kept features, and where they lie before they are sent."""

    def __getitems__(self, numbers: list[int]) -> tuple[dict[str, bool], list[torch.Tensor]]:
        samples = [read(number) for number in numbers]
        kept = [Sample("", kept=KeptImage(torch.full((3,), number).half().numpy(), 0)) for number in numbers]
        made = {"images": stack_images(ImageTransform(8), samples), "features": stack_kept(kept)}
        tensors = {name: tensor for name, tensor in made.items() if tensor is not None}
        return {name: tensor.is_shared() for name, tensor in tensors.items()}, list(tensors.values())


def read(number: int) -> Sample:
    from impresa.data.images import decode_image

    return Sample(str(number), decode_image(png(number)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_writes_batches_into_shared_memory(workers: int) -> None:
    loader: DataLoader[Any] = DataLoader(
        Collating(), batch_sampler=[[1, 2], [3, 4]], collate_fn=as_it_is, num_workers=workers
    )
    for numbers, (places, tensors) in zip([[1, 2], [3, 4]], loader, strict=True):
        assert places == {"images": bool(workers), "features": bool(workers)}
        again = stack_images(ImageTransform(8), [read(number) for number in numbers])
        assert torch.equal(tensors[0], again)
        assert tensors[1][:, 0].tolist() == numbers


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="where signals tell who has sent them")
@pytest.mark.parametrize("sender", ["the main process", "another"])
def test_a_worker_ends_when_the_main_process_says_so(
    sender: str, own_children: Callable[[], list[BaseProcess]]
) -> None:
    data = build_parts(with_workers(tiny_experiment()), None).data
    batches = iter(data.train_loader())
    next(batches)
    (worker,) = own_children()
    if sender == "another":
        for _ in range(2):  # once more, for the main process has not ended yet
            subprocess.run(["kill", str(worker.pid)], check=True)
            worker.join(0.2)
        assert worker.is_alive()
        next(batches)
    worker.terminate()  # as multiprocessing does at the end of the main process, and then waits for ever
    worker.join(60)
    assert worker.exitcode == 0


def test_a_worker_whose_connection_ends_before_it_is_told_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))  # torch does not know of it
    worker.start()

    def reset(*_: Any) -> None:
        threading.Timer(0.3, worker.kill).start()
        raise ConnectionResetError

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", reset)
    batches: Any = object.__new__(loading._WorkerIterator)
    batches._workers, batches._shutdown = [worker], True
    with pytest.raises(RuntimeError, match=rf"^DataLoader worker \(pid\(s\) {worker.pid}\) exited unexpectedly$"):
        batches._try_get_data(5.0)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_loader_that_is_closed_has_no_workers_and_begins_anew(
    persistent: bool, own_children: Callable[[], list[BaseProcess]]
) -> None:
    loader = WorkerLoader(
        Collating(), batch_sampler=[[1], [2]], collate_fn=as_it_is, num_workers=1, persistent_workers=persistent
    )
    for _ in range(2):
        batches = iter(loader)
        next(batches)
        loader.close()
        assert own_children() == []
        del batches


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="where signals tell who has sent them")
def test_a_worker_that_a_server_has_forked_heeds_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    main, (reading, writing) = os.getpid(), os.pipe()
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace(pid=main))

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # lancedb begins a thread in what is forked
        ended.append(in_child(lambda: in_child(worker)))

    def worker() -> None:
        leave_the_end_to_the_main_process(0)
        os.write(writing, f"{os.getpid()}".encode())
        time.sleep(60)
        os._exit(1)

    ended: list[int] = []
    forked = threading.Thread(target=start)
    forked.start()
    os.kill(int(os.read(reading, 20)), signal.SIGTERM)
    forked.join()
    assert ended == [0]
    os.close(reading)
    os.close(writing)


def test_a_worker_says_nothing_of_a_main_process_that_left(capfd: pytest.CaptureFixture[str]) -> None:
    def worker() -> None:
        leave_the_end_to_the_main_process(0)
        offered: Any = DupFd(0)  # as of a tensor in shared memory
        Client(offered._id[0], authkey=current_process().authkey).close()  # in the midst of taking it
        time.sleep(0.2)
        shutil.rmtree(get_temp_dir())

    assert in_child(worker) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_server_that_forks_other_processes_too_is_not_kept_from_signals(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: method)
    seen: list[set[int]] = []

    def started(self: DataLoader[Any]) -> Any:
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return self

    monkeypatch.setattr(loading, "_WorkerIterator", started)
    WorkerLoader(Collating(), num_workers=1)._get_iterator()
    assert (signal.SIGTERM in seen[0]) == (method == "fork")
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


class CountingFiles:
    """Reads samples, and says how many files of their folder its process has open then."""

    def __init__(self, source: Any, folder: Path) -> None:
        self.source, self.folder = source, folder

    def __getitems__(self, numbers: Sequence[int]) -> int:
        for number in numbers:
            assert self.source[number].image is not None
        paths = []
        for each in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the listing's own
                paths.append(each.readlink())
        return sum(self.folder in path.parents for path in paths)


def folder_of(tmp_path: Path, kind: str) -> Path:
    if kind == "folder":
        return write_jsonl(tmp_path / kind, numbered(40))
    images, captions = [png(number) for number in range(40)], [f"number {number}" for number in range(40)]
    (tmp_path / kind).mkdir()
    for part in range(2):
        rows = range(part * 20, part * 20 + 20)
        if kind == "parquet":
            table = pa.table({"image": [images[row] for row in rows], "caption": [captions[row] for row in rows]})
            pq.write_table(table, tmp_path / kind / f"{part}.parquet", row_group_size=2)
        else:
            (tmp_path / kind / f"{part}.tar").write_bytes(shards_on_disk.tar(shards_on_disk.numbered(part * 20, 20)))
    return tmp_path / kind


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux lists them")
@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_worker_does_not_open_more_and_more_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = folder_of(tmp_path, kind)
    config = tiny_experiment(f"dataset.train_path={path}", f"dataset.val_path={path}").dataset
    source = open_source(config, "train")
    if isinstance(source, ParquetSource):
        source._max_bytes_kept = 1  # one row group
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + 4] for start in range(0, 40, 4)] * 3
    loader: DataLoader[int] = DataLoader(
        CountingFiles(source, path), batch_sampler=batches, collate_fn=as_it_is, num_workers=1
    )
    counts = list(loader)
    assert max(counts[10:]) <= max(counts[:10])
    assert max(counts) - min(counts) <= 2  # one for each file


def test_a_row_group_is_read_without_opening_its_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path, "parquet")
    source = ParquetSource(path, tiny_experiment().dataset, max_bytes_kept=1)
    opened: list[Path] = []
    before = pq.ParquetFile.__init__

    def noted(self: pq.ParquetFile, file: Path, **settings: Any) -> None:
        opened.append(file)
        before(self, file, **settings)

    monkeypatch.setattr(pq.ParquetFile, "__init__", noted)
    found = [source[number].captions for number in (0, 30, 5, 39, 1, 0)]
    assert len(opened) == 2
    assert found == [(f"number {number}",) for number in (0, 30, 5, 39, 1, 0)]


def test_a_parquet_file_that_has_changed_is_opened_anew(tmp_path: Path) -> None:
    path = folder_of(tmp_path, "parquet")
    source = ParquetSource(path, tiny_experiment().dataset, max_bytes_kept=1)
    assert source[0].captions == ("number 0",)
    table = pq.read_table(path / "0.parquet")
    captions = pa.array([f"other {row}" for row in range(20)])
    pq.write_table(table.set_column(1, "caption", captions), path / "0.parquet", row_group_size=2)
    assert source[10].captions == ("other 10",)
