"""Values whose part is not built yet are refused where the part would be needed, and only there."""

from __future__ import annotations

import pytest

from impresa.config import load_experiment, rules
from impresa.config.rules import NOT_BUILT_YET, check_built
from impresa.errors import ConfigError

TURNED_ON = {
    "dataset.source": ["dataset.source=hub"],
    "trainer.strategy": ["trainer.strategy=fsdp"],
}


@pytest.mark.parametrize("key", NOT_BUILT_YET)
def test_a_value_without_its_part_is_refused(key: str) -> None:
    config = load_experiment("shapes", TURNED_ON[key])
    with pytest.raises(ConfigError) as caught:
        check_built(config)
    (line,) = caught.value.lines
    assert line.startswith(key)
    assert "is not built yet; until then it must be " in line


@pytest.mark.parametrize("name", ["default", "shapes", "shapes_audio", "digits"])
def test_what_is_built_is_not_refused(name: str) -> None:
    check_built(load_experiment(name))


def test_the_guide_s_name_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "NOT_BUILT_YET", {"losses.type": (("siglip",), "clip")})
    with pytest.raises(ConfigError, match=r"losses\.type \(model\.contrastive\.loss_type\): is not built yet; until"):
        check_built(load_experiment("default", ["model.contrastive.loss_type=siglip"]))
    check_built(load_experiment("default"))
