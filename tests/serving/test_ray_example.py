"""The example for several machines, with a stand-in for ray that starts nothing."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from served import client_of
from tiny_run import finished_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_serve.py"


def test_each_copy_is_a_server_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def deployment(builder: Any, **options: Any) -> Any:
        given.update(options, build=builder)
        return SimpleNamespace(bind=lambda: "bound")

    fake = SimpleNamespace(deployment=deployment, ingress=lambda build: lambda: build, Application=str)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=fake))
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (tmp_path / "key").write_text("secret\n")
    arguments = inspect.signature(example.served).parameters["args"].annotation  # which Ray reads, and calls
    with pytest.raises(ValidationError, match="replica\n"):
        arguments.model_validate({"run": "r", "replica": "3"})
    args = {"run": str(finished_run()), "replicas": "3", "key_file": str(tmp_path / "key")}
    assert example.served(arguments.model_validate(args)) == "bound"
    assert given["num_replicas"] == 3
    assert given["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    with client_of(given["build"]()) as client:
        assert client.get("/v1/models").status_code == 401
        answer = client.post("/v1/embeddings", json={"input": "a"}, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
