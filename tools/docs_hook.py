"""A hook of mkdocs: links of the guides that leave docs/ lead to copies in the site.

On a code host `../examples/slurm.sh` is the file itself; the site has it under `source/`, and of a folder the list of
its files, so that it needs no network and no address of a repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_LEAVING = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_FOLDER = "source"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any, **_: Any) -> str:
    """Rewrite the links of a page, and add what they lead to."""

    def inside(link: re.Match[str]) -> str:
        path = ROOT / link[1]
        name = f"{_FOLDER}/{link[1].rstrip('/')}" + (".txt" if path.is_dir() or path.suffix == ".md" else "")
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: ../{link[1]} is not there")
        if files.get_file_from_path(name) is None:
            listing = "".join(f"{found.relative_to(ROOT)}\n" for found in sorted(path.rglob("*")) if found.is_file())
            content = listing if path.is_dir() else path.read_bytes()
            files.append(File.generated(config, name, content=content))
        return f"]({'../' * page.file.src_uri.count('/')}{name})"

    return _LEAVING.sub(inside, markdown)
