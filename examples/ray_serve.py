"""A run on several machines: Ray Serve starts copies of the server, and spreads requests over them.

    pip install 'impresa[serve]' 'ray[serve]'
    serve run examples.ray_serve:served run=/shared/runs/shapes replicas=4 key_file=/shared/key

The run's folder must be on every machine, under the same path. Each copy takes two processors, or a GPU with `gpu=1`.
Clients are those of `impresa serve`. There is no key without `key_file`: then only a trusted network may reach the
port.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from ray import serve

from impresa.serving.app import make_app
from impresa.serving.settings import Settings


def served(args: dict[str, str]) -> serve.Application:
    """The application of `serve run`, whose arguments are words such as `run=DIR`."""

    def build() -> FastAPI:  # in each copy
        key = Path(args["key_file"]).read_text(encoding="utf-8").strip() if "key_file" in args else None
        return make_app(Settings(run=Path(args["run"]), index=args.get("index"), host="0.0.0.0", api_key=key))

    return serve.deployment(
        serve.ingress(build)(),
        num_replicas=int(args.get("replicas", 2)),
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 2, "num_gpus": float(args.get("gpu", 0))},
    ).bind()
