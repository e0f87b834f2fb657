"""No code that comes with a model runs, whatever its files say and whatever is typed on the terminal."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import impresa
import tiny_hub
from impresa.data.audio import PretrainedAudioTransform
from impresa.data.chat import TemplateChat
from impresa.data.images import pretrained_image_transform
from impresa.data.tokenizers import PretrainedTokenizer
from impresa.decoders.pretrained import KEY as LANGUAGE_MODEL
from impresa.encoders.pretrained_vision import load_vision_backbone
from impresa.errors import ConfigError, DataError
from impresa.hub import from_pretrained, read_config
from tiny_qwen import save_qwen

PACKAGE = Path(impresa.__file__).parent
CODE = (
    "open({path!r}, 'w').close()\nfrom transformers import CLIPConfig as Config, CLIPModel as Model\nOther = Config\n"
)
KINDS = (
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a stranger's code would write; the user says yes to everything."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    return tmp_path / "ran"


def poison(folder: Path, ran: Path) -> str:
    """Let every file of a model name code for what transformers does not know."""
    (folder / "code.py").write_text(CODE.format(path=str(ran)))
    code = {"auto_map": dict.fromkeys(KINDS, "code.Config") | {"AutoTokenizer": ["code.Config", None]}}
    change(folder / "config.json", model_type="strange", **code)
    for name, kind in (("preprocessor_config.json", ("image_processor_type", "feature_extractor_type")),
                       ("tokenizer_config.json", ("tokenizer_class",))):  # fmt: skip
        if (folder / name).is_file():
            change(folder / name, **code, **dict.fromkeys(kind, "Strange"))
    return str(folder)


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (tiny_hub.clip, lambda name: load_vision_backbone(name, 32)),
        (tiny_hub.clip, lambda name: read_config("key", name)),
        (tiny_hub.clip, lambda name: pretrained_image_transform(name, 32)),
        (tiny_hub.clip, lambda name: PretrainedTokenizer.from_backbone(name, 8)),
        (tiny_hub.whisper, lambda name: PretrainedAudioTransform.from_backbone(name, 1.0)),
        (save_qwen, TemplateChat.from_model),
        (save_qwen, lambda name: read_config(LANGUAGE_MODEL, name)),
    ],
)
def test_a_model_that_needs_code_is_refused_in_one_line(
    make: Callable[[Path], Path], use: Callable[[str], Any], tmp_path: Path, ran: Path
) -> None:
    name = poison(make(tmp_path / "model"), ran)
    with pytest.raises(ConfigError) as caught:
        use(name)
    assert str(caught.value).endswith(
        "it needs Python code of its own, which is never run; use a model of transformers"
    )
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_a_run_whose_tokenizer_needs_code_is_refused(tmp_path: Path, ran: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    PretrainedTokenizer.from_backbone(str(folder), 8).save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/config.json").write_text("{}")
    poison(tmp_path / "tokenizer", ran)
    with pytest.raises(DataError, match="needs Python code of its own, which is never run"):
        PretrainedTokenizer.load(tmp_path / "tokenizer")
    assert not ran.exists()


def test_code_beside_a_model_that_transformers_knows_is_left_alone(tmp_path: Path, ran: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    (folder / "code.py").write_text(CODE.format(path=str(ran)))
    change(folder / "config.json", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    load_vision_backbone(str(folder), 32)
    load_vision_backbone(str(folder), 32, load_weights=False)
    assert not ran.exists()


def test_a_kernel_of_the_hub_is_code(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    change(folder / "config.json", attn_implementation="stranger/kernel")
    with pytest.raises(ConfigError, match="names a kernel of the hub, which is code and never run"):
        read_config("vision_encoder.backbone", str(folder))


@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPImageProcessor", "PreTrainedModel", "AutoTokenizer"])
def test_the_class_of_a_tokenizer_is_that_of_a_tokenizer(kind: str, tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    with pytest.raises(ConfigError, match=r"text_encoder\.backbone: .* cannot be loaded; "):
        PretrainedTokenizer.from_backbone(str(folder), 8)


@pytest.mark.parametrize("part", [None, "vision_config"])
def test_a_config_of_endless_labels_is_refused(part: str | None, tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    labels = {"num_labels": 10**12}
    change(folder / "config.json", **({part: labels} if part else labels))
    with pytest.raises(ConfigError, match=r"its config\.json has more than 100000 labels"):
        read_config("key", str(folder))


@pytest.mark.parametrize("values", [{"image_std": [0, 0, 0]}, {"image_mean": [1e400, 0, 0]}, {"image_mean": ["x"]}])
def test_odd_preprocessing_of_a_model_is_refused_before_a_run_has_it(values: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    change(folder / "preprocessor_config.json", **values)
    with pytest.raises(ConfigError, match=r"^vision_encoder\.backbone: "):
        pretrained_image_transform(str(folder), 32)


def test_an_odd_length_of_texts_is_refused(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    change(folder / "tokenizer_config.json", model_max_length="x")
    with pytest.raises(ConfigError, match=r"^text_encoder\.backbone: .* cannot be loaded"):
        PretrainedTokenizer.from_backbone(str(folder), 8)


def test_pickled_weights_run_nothing_and_no_advice_is_passed_on(tmp_path: Path, ran: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(ran)!r}, 'w').close()",)

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"its weights are pickled, .* save it with safetensors$"):
        load_vision_backbone(str(folder), 32)
    assert not ran.exists()


def test_a_panic_over_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    folder = tiny_hub.clip(tmp_path / "clip")
    change(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "////AGFh"})
    with pytest.raises(ConfigError, match="cannot be loaded; Precompiled"):
        PretrainedTokenizer.from_backbone(str(folder), 8)


def test_an_adapter_in_a_model_s_folder_is_not_put_in(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPModel

    folder = tiny_hub.clip(tmp_path / "clip")
    model = get_peft_model(CLIPModel.from_pretrained(folder), LoraConfig(r=1, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match="it is an adapter of another model; merge the two"):
        load_vision_backbone(str(folder), 32)


def test_only_the_helper_reads_what_others_saved() -> None:
    bare, trusting = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
        for call in calls:
            method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            said = {ast.unparse(word.value) for word in call.keywords if word.arg == "trust_remote_code"}
            if method == "from_pretrained":
                bare.append(path.name)
            if said - {"False"} or (method in ("from_pretrained", "from_config") and not said):
                trusting.append(str(path.relative_to(PACKAGE)))
    assert bare == ["hub.py"]
    assert trusting == ["export/sentence_transformers.py"]  # reads, for a check, the folder that it has just written


def test_the_helper_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    tiny_hub.clip(tmp_path / "clip")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_pretrained(AutoConfig, "~/clip").model_type == "clip"
