"""A run on several machines: Ray Serve starts copies of the server, and spreads requests over them.

    pip install 'impresa[serve]' 'ray[serve]'
    serve run examples.ray_serve:served run=/shared/runs/shapes replicas=4 key_file=/shared/key

The run's folder must be on every machine, under the same path. Each copy takes two processors (`cpus=1`), and a GPU
with `gpu=1`; Ray waits for machines that have as many. Clients are those of `impresa serve`. There is no key without
`key_file`: then only a trusted network may reach the port.
"""

# Without `from __future__ import annotations`: Ray reads the annotation of `served`.

from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt
from ray import serve

from impresa.serving.app import make_app
from impresa.serving.settings import Settings


class Arguments(BaseModel, extra="forbid"):
    """The arguments of `serve run`."""

    run: Path
    index: str | None = None
    replicas: PositiveInt = 2
    cpus: PositiveFloat = 2
    gpu: NonNegativeFloat = 0
    key_file: Path | None = None


def served(args: Arguments) -> serve.Application:
    """The application of `serve run`."""
    settings, key_file = Settings(run=args.run.absolute(), index=args.index, host="0.0.0.0"), args.key_file

    def build() -> FastAPI:  # in each copy
        key = None if key_file is None else key_file.read_text(encoding="utf-8").strip()
        return make_app(replace(settings, api_key=key))

    return serve.deployment(
        serve.ingress(build)(),
        num_replicas=args.replicas,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpu},
    ).bind()
