"""A writer that is killed leaves every file of a run as it was, or new and whole; nothing in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load

import impresa
from impresa.export import export_run
from impresa.files import replacing_folder
from impresa.run_dir.save import save_run
from tiny_qwen import save_qwen
from tiny_run import finished_run
from tiny_vlm import answering, samples, tiny_qwen_vlm


def all_deaths(write: Callable[[Path], object], folder: Path) -> list[Path]:
    """What a writer leaves that is killed at its first rename, its second, and so on; each in a folder of its own."""
    killed = []
    while _dies_at_rename(len(killed) + 1, write, target := folder / f"killed-{len(killed)}"):
        killed.append(target)
    return killed


def _dies_at_rename(number: int, write: Callable[[Path], object], target: Path) -> bool:
    """Write in a process of its own that is gone before its rename of this number; false if it has fewer."""
    child = os.fork()
    if child == 0:
        count = 0
        rename = os.replace

        def replace(*arguments: object) -> None:
            nonlocal count
            count += 1
            if count == number:
                os._exit(9)
            rename(*arguments)  # type: ignore[arg-type]

        os.replace = replace  # type: ignore[assignment]
        try:
            write(target)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def visible_files(folder: Path) -> dict[str, bytes]:
    """Content of the files that a reader would look at, by path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = ((path.relative_to(folder), path.read_bytes()) for path in files)
    return {str(path): data for path, data in found if not any(part.startswith(".") for part in path.parts)}


def test_a_run_whose_writer_is_killed_has_whole_files_only(tmp_path: Path) -> None:
    model = impresa.load(finished_run(), "cpu")

    def save(run_dir: Path) -> None:
        save_run(run_dir, model.model, model.config, model.preprocessing)

    save(tmp_path / "whole")
    whole = visible_files(tmp_path / "whole")
    assert {"config.yaml", "preprocessing.json", "tokenizer/tokenizer.json", "model.safetensors"} <= whole.keys()
    killed = all_deaths(save, tmp_path)
    for run_dir in killed:
        seen = visible_files(run_dir)
        assert "manifest.json" not in seen
        golden = seen.pop("golden.safetensors", None)  # its header has no fixed order
        assert golden is None or load(golden).keys() == load(whole["golden.safetensors"]).keys()
        assert seen.items() <= whole.items()
    assert len(killed) == 6  # config, tokenizer, transforms, weights, golden outputs, manifest


def test_a_tokenizer_or_export_whose_writer_is_killed_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    qwen = save_qwen(tmp_path / "qwen")
    lora = ("decoder.use_lora=true", "decoder.lora.target_modules=[q_proj]")
    from impresa.data.chat import TemplateChat

    chat = TemplateChat.from_model(str(qwen))
    model = answering(tiny_qwen_vlm(qwen, *lora), chat)
    run_dir = tmp_path / "run"
    save_run(run_dir, model.model, model.config, model.preprocessing, examples=samples())
    killed = all_deaths(lambda folder: export_run(run_dir, folder), tmp_path)
    assert killed
    assert not any(folder.exists() for folder in killed)
    assert (export_run(run_dir, tmp_path / "export") / "adapter_model.safetensors").is_file()


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "old.json").write_text("old")
    with pytest.raises(IsADirectoryError), replacing_folder(folder) as temporary:
        temporary.write_text("no folder takes this")
    assert [path.name for path in folder.iterdir()] == ["old.json"]
    with replacing_folder(folder) as temporary:
        (temporary / "new.json").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["tokenizer", "new.json"]
