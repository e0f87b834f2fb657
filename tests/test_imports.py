"""Imports point one way, and heavy libraries stay where they belong; read from the source, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import impresa

PACKAGE = Path(impresa.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LEVELS = {
    name: level
    for level, names in enumerate(
        (
            ("errors", "foreign_text", "streams"),
            ("files", "json_files", "run_dir.layout"),
            ("config", "run_dir.environment", "run_dir.lock", "run_dir.cost", "run_dir.manifest"),
            ("layers", "hub"),
            ("encoders", "losses"),
            ("decoders", "fusion"),
            ("data",),
            ("evaluation", "own"),
            ("reports",),
            ("inside",),
            ("run_dir.weights", "run_dir.integrity", "run_dir.golden"),
            ("tasks",),
            ("run_dir",),
            ("export",),
            ("training", "auto_registration"),
            ("ablation", "embedding_map", "interpolation", "search"),
            ("serving",),
            ("cli",),
            ("__main__",),
        )
    )
    for name in names
}
"""Parts of the package from low to high; a part may import what is lower, and itself. Of the run directory the file
names, the environment, the weights and the checksums are below the tasks, saving and loading of whole models above."""
ONLY_IN = {
    "lightning": (),
    "torchmetrics": ("evaluation/text_scores.py",),
    "sklearn": ("evaluation/linear_probe.py",),
    "hydra": ("config/compose.py",),
    "omegaconf": ("config/compose.py",),
    "fastapi": ("serving/",),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "prometheus_client": ("serving/",),
}


def imports_of(path: Path, *, at_import_only: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports; those for type checkers only do not count."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import from impresa, not from a dot"
            yield str(node.module)
        todo += ast.iter_child_nodes(node)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level_of(module: str) -> int:
    """The level of `part.module...`, by its longest name in the table."""
    part, _, rest = module.partition(".")
    return LEVELS.get(f"{part}.{rest.split('.')[0]}", LEVELS[part])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_and_heavy_libraries_stay_at_home(path: Path) -> None:
    here, part = path.relative_to(PACKAGE).as_posix(), part_of(path)
    for module in imports_of(path):
        root, _, rest = module.partition(".")
        if root == "impresa" and rest and part != "__init__":
            own, other = level_of(here.removesuffix(".py").replace("/", ".")), level_of(rest)
            within = rest.split(".")[0] == part and other <= own
            assert within or other < own, f"{here} imports {module}, which is no lower part"
        allowed = ONLY_IN.get(root)
        assert allowed is None or here.startswith(allowed), f"{here} imports {root}"


def test_no_circle_of_imports_not_even_inside_functions() -> None:
    modules = {".".join(("impresa", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    graph = {name: set(imports_of(path)) & modules.keys() for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_who_exports_knows_which_decoders_there_are() -> None:
    """The rest of the house knows the interface alone, `decoders.base`, and chooses by `decoders.kinds`."""
    known = {}
    for path in MODULES:
        if part_of(path) != "decoders":
            of = {module.removeprefix("impresa.decoders.") for module in imports_of(path) if ".decoders." in module}
            known[path.relative_to(PACKAGE).as_posix()] = of & {"pretrained", "trm"}
    expected = {"export/language_model.py": {"pretrained"}}
    assert {name: of for name, of in known.items() if of} == expected


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) in ("config", "cli", "errors", "__init__")])
def test_configs_and_commands_import_nothing_heavy_at_import(path: Path) -> None:
    heavy = {"torch", "transformers", "numpy", "PIL", "pyarrow", "matplotlib", "tokenizers"}
    assert not heavy & {module.partition(".")[0] for module in imports_of(path, at_import_only=True)}
