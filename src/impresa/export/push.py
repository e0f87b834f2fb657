"""A finished run on the Hugging Face hub: an export, and a card with metrics, licence and limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from impresa.config.encoder import is_from_scratch
from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import read_run
from impresa.errors import CheckpointError, ConfigError
from impresa.evaluation.results import read_evaluation
from impresa.export.formats import OPEN_CLIP_CONFIG, Format, chosen_format
from impresa.export.run import export_run
from impresa.files import write_atomic
from impresa.hub import hub_is_away
from impresa.json_files import parse_json, read_text
from impresa.reports.rendering import render
from impresa.reports.tables import interval_note, make_tables, summary, warnings
from impresa.run_dir.layout import MODEL_CARD


@dataclass(frozen=True)
class Upload:
    """Files to send, and the repository."""

    repo: str
    folder: Path
    private: bool

    @property
    def files(self) -> list[tuple[str, int]]:
        """Name and bytes of each file."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in paths]

    @property
    def card(self) -> str:
        return (self.folder / MODEL_CARD).read_text(encoding="utf-8")


def prepare_upload(
    run_dir: Path,
    folder: Path,
    repo: str,
    *,
    to: Format | None = None,
    licence: str | None = None,
    private: bool = False,
) -> Upload:
    """Export a run to a new folder, with the card; nothing is sent.

    Args:
        run_dir: the run.
        folder: a new one.
        repo: `OWNER/NAME` on the hub.
        to: the format; None takes safetensors for an alignment, else see `export_run`.
        licence: the hub's name of it, such as apache-2.0; None leaves the field out, and the card says so.
        private: whether a new repository is for its owner alone.

    Raises:
        ConfigError: the name of the repository or of the licence is none.
        CheckpointError: see `export_run`; the run has no evaluation that can be read.
    """
    check_repo(repo)
    _check_licence(licence)
    config = read_run("RUN", str(run_dir))
    to = chosen_format(config, run_dir, "safetensors" if to is None and config.decoder is None else to)
    export_run(run_dir, folder, to=to)
    if to == "open_clip":
        _name_tokenizer(folder / OPEN_CLIP_CONFIG, repo)
    write_atomic(folder / MODEL_CARD, _card(config, run_dir, folder, repo, licence, to))
    return Upload(repo, folder, private)


def check_repo(repo: str) -> None:
    """Refuse what is no name of a repository, as a `ConfigError`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"REPO: {repo} is no name of a repository ({_first_line(error)}); give OWNER/NAME") from error
    if "/" not in repo:
        raise ConfigError(f"REPO: {repo} has no owner; give OWNER/NAME")


def _check_licence(licence: str | None) -> None:
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        fix = "give its name on the hub, such as apache-2.0, mit, cc-by-4.0 or other"
        raise ConfigError(f"--licence: {licence} is no name of a licence; {fix}")


def send(upload: Upload) -> str:
    """Make the repository if it is not there, and send all files as one commit; returns its address.

    Raises:
        ConfigError: there is no network or no token, or the hub refuses it.
    """
    from huggingface_hub import HfApi, constants

    if away := hub_is_away(f"`impresa push ... {upload.repo}`", "nothing"):
        raise ConfigError(f"{upload.repo}: {away.partition(';')[0]}; --dry-run shows what would be sent")
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(upload.repo, private=upload.private or None, exist_ok=True)
        made = api.upload_folder(
            repo_id=upload.repo, folder_path=upload.folder, commit_message="Upload by impresa push"
        )
    except Exception as error:  # of the hub, of HTTP, and of tokens; none is a fault of ours
        raise ConfigError(f"{upload.repo}: {_why_refused(error)}") from error
    return str(getattr(made, "commit_url", f"{constants.ENDPOINT}/{upload.repo}"))


def _why_refused(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in by `hf auth login`, or set HF_TOKEN, with a token that may write"
    if type(error).__name__ == "LocalTokenNotFoundError":
        return f"there is no token; {login}"
    if status == 401:
        return f"the hub does not know the token; {login}"
    if status == 403:
        return f"the token may not write there; {login}"
    return f"cannot be sent ({_first_line(error)}); try again"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _name_tokenizer(path: Path, repo: str) -> None:
    """open_clip reads the tokenizer from the repository that its config names."""
    import json

    described = parse_json(read_text(path))
    described["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repo
    write_atomic(path, json.dumps(described, indent=2) + "\n")


def _card(  # noqa: PLR0917
    config: ExperimentConfig, run_dir: Path, folder: Path, repo: str, licence: str | None, to: Format
) -> str:
    front, body = _parts((folder / MODEL_CARD).read_text(encoding="utf-8"))
    front = ({"license": licence} if licence else {}) | front
    front["tags"] = list(dict.fromkeys([*front.get("tags", ()), *config.labels.tags]))
    evaluation, tables = read_evaluation(run_dir, gallery=False), []
    facts: dict[str, Any] = {"summary": "", "warnings": [], "interval_note": ""}
    if evaluation is not None:
        tables = make_tables(evaluation)
        facts = {"summary": summary(evaluation), "warnings": warnings(evaluation)}
        facts["interval_note"] = interval_note(tables)
    limits = list(_limits(config, has_figures=bool(tables), licence=licence))
    facts |= {"front": front, "body": _of_repository(body.strip(), repo, to), "tables": tables, "limits": limits}
    return render("hub.md.j2", **facts)


def _of_repository(body: str, repo: str, to: Format) -> str:
    """How to use a folder, as it is done with a repository."""
    if to in ("safetensors", "onnx"):  # which are read from a folder alone
        name = repo.rpartition("/")[2]
        return f"{body.replace('this folder', name)}\n\n`hf download {repo} --local-dir {name}` brings the files there."
    return body.replace("local-dir:this folder", f"hf-hub:{repo}").replace("this folder", repo)


def _parts(readme: str) -> tuple[dict[str, Any], str]:
    """The front matter of a README, and what follows."""
    _, front, body = readme.split("---\n", 2) if readme.count("---\n") >= 2 else ("", "", readme)
    found = yaml.safe_load(front) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{MODEL_CARD}: its front matter is no mapping; export the run again")
    return found, body


def _limits(config: ExperimentConfig, *, has_figures: bool, licence: str | None) -> Iterator[str]:
    size, text = config.dataset.image_size, config.text_encoder
    seen = f"Of a picture it sees {size} x {size} pixels"
    if config.decoder is None:
        yield f"{seen}, and of a text at most {text.max_len} tokens; finer detail and the rest of a text are lost."
    else:
        yield f"{seen}; finer detail is lost. Its answers can be wrong, and do not say how sure they are."
    if has_figures:
        yield "The figures above are of test data like those it was trained on; on other data they will be lower."
    else:
        yield "It was not evaluated: nothing is known of how well it does."
    parts = [config.vision_encoder.backbone] if not is_from_scratch("image", config.vision_encoder) else []
    parts += [text.backbone] if config.decoder is None and not is_from_scratch("text", text) else []
    if parts:
        yield f"It stands on {' and '.join(dict.fromkeys(parts))}, whose licence and limits are its own too."
    yield "It repeats what its training data say and leave out; examine it before decisions on people depend on it."
    if licence is None:
        yield "No licence is named, so that nobody may use it but by agreement with its owner."
