"""The import graph of the package: no circles, and one direction between its parts. Lazy imports count."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import ave_clip

ROOT = Path(ave_clip.__file__).parent
# Each part may import from those after it, and from what does not depend on anything but core.
ORDER = (
    *("__main__", "cli", "cli_outputs", "cli_live", "cli_options", "label_list", "__init__", "corpus"),
    *("corpus_videos", "registration", "checkpoints", "training", "rivals", "data", "outputs", "core"),
)
SHARED = ("files", "programs", "short_names", "video_files")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports_of(name: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in its code."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return (found & MODULES.keys()) - {name, "ave_clip"}  # only `__version__` comes from the package itself


GRAPH = {name: imports_of(name) for name in MODULES}


def part_of(name: str) -> str:
    """The folder, or the module at the top level, that a module belongs to."""
    return name.split(".")[1] if "." in name else "__init__"


def test_the_graph_is_complete():
    assert "ave_clip.data.h5" in GRAPH["ave_clip.data.source"]
    assert "ave_clip.core.video_io" in GRAPH["ave_clip.data.custom"]  # a lazy import
    assert {part_of(name) for name in MODULES} == {*ORDER, *SHARED}


def test_no_modules_import_each_other_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(f"circle of imports: {' <- '.join(error.args[1])}") from None


def test_imports_between_the_parts_point_down():
    for name, imported in GRAPH.items():
        for other in imported:
            part, target = part_of(name), part_of(other)
            if part in SHARED:
                assert target in ("core", *SHARED), f"{name} imports {other}"
            elif target not in SHARED and part != target:
                assert ORDER.index(part) < ORDER.index(target), f"{name} imports {other}"
            assert part != "core" or target == "core", f"{name} ships with checkpoints, but imports {other}"
