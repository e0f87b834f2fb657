"""Moving a model: where it cannot go, it stays usable where it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import impresa
from impresa.errors import ConfigError
from impresa.tasks.devices import move, usable_device
from served import hearing_model, talking_model
from tiny_run import finished_run
from tiny_vlm import picture

SEEN = picture(3)


class Part(nn.Linear):
    """A part that notes where it is moved, and may refuse to leave the CPU, as when a device has no memory left."""

    def __init__(self, fault: BaseException | None = None) -> None:
        super().__init__(2, 2)
        self.fault, self.places = fault, ["cpu"]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        place = fn(torch.zeros(1)).device.type
        if self.fault is not None and place != "cpu":
            raise self.fault
        self.places.append(place)
        return self


@pytest.fixture(params=["meta", torch.bfloat16, torch.float64])
def defaults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Someone has changed torch's own defaults; `meta` stands for a GPU."""
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(request.param)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


class Results:
    """What models give, as they are loaded and used here and now."""

    def __init__(self) -> None:
        seen, heard = SEEN, (torch.linspace(-1, 1, 3000, dtype=torch.float32, device="cpu").sin(), 16_000)
        model, hearing, talking = impresa.load(finished_run(), "cpu"), hearing_model(), talking_model()
        self.text = model.encode_text("a red circle")
        self.image = model.encode_image(seen)
        self.sound = hearing.encode_audio(heard)
        self.nothing = model.encode_text([], normalize=False)
        self.cosines = model.similarity([[1.0] * 16], self.text)
        self.answer = talking.ask(seen, "what is it?")
        self.pieces = "".join(talking.stream(seen, "what is it?"))
        self.seen = talking.explain(seen, "what is it?").headline


@pytest.fixture(scope="module")
def usual() -> Results:
    return Results()


def test_nothing_depends_on_the_defaults_of_torch(usual: Results, defaults: None) -> None:
    now = Results()
    for name, value in vars(usual).items():
        if isinstance(value, str):
            assert getattr(now, name) == value
        else:
            torch.testing.assert_close(getattr(now, name), value, rtol=0, atol=0)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", 0, "0", "gpu", "auto", "", "meta", -1, 3.5, True, b"cpu", []])
@pytest.mark.skipif(torch.cuda.is_available(), reason="names devices that this machine must not have")
def test_a_device_that_cannot_be_had_is_one_line_and_changes_nothing(device: Any) -> None:
    model = impresa.load(finished_run(), "cpu")
    expected = model.encode_text("a red circle")
    for attempt in (lambda: model.to(device), lambda: model.encode_text("a", device=device)):
        with pytest.raises(ConfigError, match=r"^device: .* cannot be used here \(.*\); give cpu, or leave it out$"):
            attempt()
    assert model.device == torch.device("cpu")
    assert torch.equal(model.encode_text("a red circle"), expected)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two GPUs, as far as a tensor of zeros can tell; the devices on which one was made."""
    asked: list[Any] = []
    zeros = torch.zeros
    monkeypatch.setattr("torch.zeros", lambda *size, device=None: asked.append(device) or zeros(*size))
    return asked


@pytest.mark.parametrize("number", [0, 1])
def test_a_number_is_that_of_a_gpu(number: int, gpus: list[Any]) -> None:
    assert usable_device(number) == usable_device(str(number)) == torch.device("cuda", number)
    assert gpus == [torch.device("cuda", number)] * 2


def test_the_option_of_the_command_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--device: toaster cannot be used here"):
        usable_device("toaster", "--device")


FULL = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


@pytest.mark.parametrize("fault", [FULL, ValueError("four bits stay where they are")])
def test_a_move_that_fails_half_way_is_taken_back(fault: Exception) -> None:
    model = nn.Sequential(Part(), Part(fault))
    reason = str(fault).splitlines()[0]
    with pytest.raises(ConfigError) as caught:
        move(model, torch.device("meta"), torch.device("cpu"))
    fix = "the model stays on cpu, so free memory there or give another device"
    assert str(caught.value) == f"device: the model cannot be moved to meta ({reason}); {fix}"
    assert [part.places for part in model] == [["cpu", "meta", "cpu"], ["cpu", "cpu"]]


def test_a_move_that_is_interrupted_is_taken_back() -> None:
    model = nn.Sequential(Part(), Part(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        move(model, torch.device("meta"), torch.device("cpu"))
    assert model[0].places[-1] == "cpu"
