"""Imports point downwards, and the world knows nothing of the package that measures it."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
# lower layers first; modules of one layer may use each other's public names only through the layer
BASE = ("_text", "_cache", "_progress", "parameters")  # no layer: sentences and places that every one may use
ALLOWED = {
    "_text": (),
    "_cache": (),
    "_progress": (),
    "parameters": (),
    "models": (),
    "datasets": (),
    "prompts": (),
    "scores": (),
    "conditions": ("models",),
    "jacobian": ("models", "conditions"),
    "measure": ("models", "datasets", "conditions"),
    "records": ("scores",),
    "study": ("models", "datasets", "prompts", "conditions", "measure", "scores", "records"),
    "experiments": (
        "models", "datasets", "prompts", "conditions", "jacobian", "measure", "scores", "records", "study",
    ),
    "plots": ("scores", "records"),
    "doctor": ("models", "datasets", "prompts", "conditions", "measure", "scores"),
    "fetch": ("datasets",),
    "run": ("models", "datasets", "records"),
    "receipts": ("datasets", "scores"),
    "book": ("datasets", "scores", "records", "receipts"),
}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below(layer):
    folder = ROOT / "zsr_utils" / layer
    files = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    for path in files:
        for module in imports(path):
            if module.startswith("zsr_utils."):
                used = module.split(".")[1]
                assert used in (layer, *BASE, *ALLOWED[layer]), f"{path} imports {module}"


def test_tabletop_knows_nothing_of_the_package():
    for path in (ROOT / "tabletop").rglob("*.py"):
        assert not any(m.startswith("zsr_utils") for m in imports(path)), path


def test_only_the_registries_of_models_and_data_sets_reach_into_tabletop():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "zsr_utils").rglob("*.py")
        if any(m.split(".")[0] == "tabletop" for m in imports(path))
    }
    scenes = {f"zsr_utils/datasets/_{name}.py" for name in ("rendered", "scenes", "questions")}
    assert users == {"zsr_utils/models/_tabletop.py", *scenes}


def test_private_names_stay_in_their_module():
    for path in (ROOT / "zsr_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zsr_utils"):
                private = [a.name for a in node.names if a.name.startswith("_") and node.module.count(".") > 1]
                assert not private, f"{path} imports {', '.join(private)}"
