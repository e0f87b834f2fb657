"""Export of a finished run: the format's writer, and its check, into a folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from impresa.export.formats import READERS, Format, check_free, chosen_format
from impresa.files import replacing_folder
from impresa.hub import import_optional


def export_run(
    run_dir: Path, folder: Path, *, to: Format | None = None, merge: bool = False, check: bool = False
) -> Path:
    """Write a finished run as another library reads it; returns the folder.

    Args:
        run_dir: a run; an alignment for the formats of embeddings, one with a pretrained decoder for the others.
        folder: where to; it must not exist, or be empty.
        to: the format; None writes the adapters of a language model, or all of one that was trained whole.
        merge: the same as `to="merged"`.
        check: load the folder in a new process by the format's own library and compare it with the run.

    Raises:
        CheckpointError: the run is damaged, cannot be expressed in the format or differs there, or the folder is taken.
        ConfigError: a library that the format needs is missing, or the base model cannot be read.
    """
    from impresa.run_dir.load import read_run_config
    from impresa.run_dir.manifest import verify

    config = read_run_config(run_dir)
    to = chosen_format(config, run_dir, "merged" if merge else to)
    check_free(folder)
    if check and to in READERS:
        import_optional("--check", *READERS[to])
    verify(run_dir)
    with _parents_of(folder), replacing_folder(folder) as temporary:
        match to:
            case "peft" | "merged":
                from impresa.export.language_model import write_language_model

                write_language_model(config, run_dir, temporary, merge=to == "merged")
            case "safetensors":
                from impresa.export.safetensors import write_encoders

                write_encoders(config, run_dir, temporary)
            case "sentence-transformers":
                from impresa.export.sentence_transformers import write_sentence_transformer

                write_sentence_transformer(config, run_dir, temporary)
            case "transformers":
                from impresa.export.transformers import write_transformers

                write_transformers(config, run_dir, temporary)
            case "open_clip":
                from impresa.export.open_clip import write_open_clip

                write_open_clip(config, run_dir, temporary)
            case "onnx":
                from impresa.export.onnx import write_onnx

                write_onnx(config, run_dir, temporary)
        if check:
            from impresa.export.check import check_export

            check_export(to, temporary, folder, run_dir)
    return folder


@contextmanager
def _parents_of(folder: Path) -> Iterator[None]:
    """Make the folders above, which go again with an error."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise
