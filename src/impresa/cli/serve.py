"""Serve a run over HTTP: embeddings and answers, as the clients of OpenAI and others ask for them.

The server answers on this machine alone unless --host says otherwise. Pictures and sounds come in the requests;
with --allow-urls they are fetched from the hosts that are named, too.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.cli.options import add_device, count, count_or_zero, non_negative
from impresa.errors import ConfigError

if TYPE_CHECKING:
    from impresa.serving.settings import Limits

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_MOST_KEY = 4096
_MOST_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory that `impresa train` printed")
    parser.add_argument("--index", metavar="INDEX", help="index of the run to search in, made by `impresa index`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=count_or_zero, default=8000, help="default: %(default)s; 0 takes a free one")
    what = "file whose only line clients must send as their API key"
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=what)
    what = "hosts that pictures and sounds are fetched from, separated by commas"
    parser.add_argument("--allow-urls", metavar="HOSTS", help=what)
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes, each with a model of its own")
    parser.add_argument("--name", help="the model's name for clients (default: that of the run's folder)")
    what = "inputs of several requests that are computed together (default: 32)"
    parser.add_argument("--batch-size", type=count, metavar="N", help=what)
    what = "milliseconds that a batch waits for more inputs (default: 5)"
    parser.add_argument("--max-wait-ms", type=non_negative, metavar="MS", help=what)
    parser.add_argument("--queue", type=count, metavar="N", help="inputs that may wait; more get 429 (default: 4096)")
    parser.add_argument("--timeout", type=count, metavar="S", help="seconds until a request gets 504 (default: 60)")
    parser.add_argument("--max-body-mib", type=count, metavar="MIB", help="largest request (default: 32)")
    add_device(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Serve until a signal ends it."""
    _check_installed(args)
    from impresa.serving.settings import Settings

    settings = Settings(
        run=args.run,
        index=args.index,
        host=args.host,
        port=_port(args.port),
        api_key=_key_of(args.api_key_file),
        allow_urls=_hosts_of(args.allow_urls),
        name=args.name,
        device=args.device,
        limits=_limits_of(args),
    )
    if not settings.is_local and settings.api_key is None:
        line = f"--host: anybody who can reach {args.host} may use this server; --api-key-file asks them for a key"
        print(line, file=sys.stderr)
    from impresa.serving.run import serve

    serve(settings, args.workers)


def _check_installed(args: argparse.Namespace) -> None:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"serve: needs {missing[0]}; pip install 'impresa[serve]' installs it")
    if args.allow_urls and find_spec("aiohttp") is None:
        raise ConfigError("--allow-urls: needs aiohttp; pip install 'impresa[fetch]' installs it")


def _port(port: int) -> int:
    if port > _MOST_PORT:
        raise ConfigError(f"--port: {port} is not within 0 to {_MOST_PORT}; choose another")
    return port


def _key_of(path: Path | None) -> str | None:
    """The key in a file: its only line, without the spaces around it."""
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:  # Windows' editors begin files with a mark
            key = file.read(_MOST_KEY + 1).strip()
    except OSError as error:
        raise ConfigError(f"--api-key-file: {path}: {error.strerror or error}; name a file with a key") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--api-key-file: {path}: is no text; write one line of letters and digits") from error
    if not key or len(key) > _MOST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"--api-key-file: {path}: must hold one line, the key, of ASCII characters without spaces")
    return key


def _hosts_of(text: str | None) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(host.strip().lower().rstrip(".") for host in (text or "").split(",") if host.strip()))
    for host in hosts:
        if any(character in host for character in "/:*@ ") or not host.isascii():
            raise ConfigError(f"--allow-urls: {host} is no name of a host; give names such as images.example.org")
    if text is not None and not hosts:
        raise ConfigError("--allow-urls: names no host; give names such as images.example.org")
    return hosts


def _limits_of(args: argparse.Namespace) -> Limits:
    from impresa.serving.settings import Limits

    given = {
        "batch_size": args.batch_size,
        "max_wait_ms": args.max_wait_ms,
        "queue": args.queue,
        "timeout_s": args.timeout,
        "body_bytes": None if args.max_body_mib is None else args.max_body_mib << 20,
    }
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    return replace(limits, all_bytes=max(limits.all_bytes, limits.body_bytes))
