"""Every module of the MLX side has its twin in torch_ref: the same public names, the same docstrings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MLX, TORCH = ROOT / "mlx_peft" / "backend", ROOT / "torch_ref"
ONLY_MLX = {"__init__.py", "blas.py", "forks.py", "installed.py", "threads.py"}
"""How MLX is loaded, what it cannot do after a fork, what is lent to a module while a function is traced, and what it
wants of a thread."""
ONLY_TORCH = {"__init__.py", "__main__.py", "compiling.py", "crossing.py", "threads.py", "tools"}
"""Its own front door, how a step is compiled and what crosses to a GPU, which MLX does itself, parts of a batch beside
one another, and what there is for PyTorch alone."""
MODULES = sorted(p.relative_to(MLX) for p in MLX.rglob("*.py") if p.relative_to(MLX).parts[0] not in ONLY_MLX)


def public(path: Path) -> dict[str, str | None]:
    """Names, those of a class's methods behind its own, and, for functions and classes, their docstrings."""
    found: dict[str, str | None] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found[node.name] = ast.get_docstring(node)
            methods = [inner for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.FunctionDef)]
            promised = [method for method in methods if not method.name.startswith("_") and method.name != "forward"]
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{method.name}": ast.get_docstring(method) for method in promised}
        elif isinstance(node, ast.Assign):
            found |= {t.id: None for t in node.targets if isinstance(t, ast.Name) and not t.id.startswith("_")}
    return found


ONLY_HERE = {
    # What one framework needs and the other does not.
    "bank.py": {"MOST"},  # torch has it for all that answers, in threads.py
    "by_hand.py": {f"AdamW.{own}" for own in ("apply_gradients", "learning_rate", "state", "step")},
    "device.py": {"device", "multiplying"},
    "measured.py": {"kept_bytes"},
    "methods/mixed.py": {
        "terms_at",
        "scaled",
        "add_bottlenecks",
        "begins",
        "narrow",
        "MANY",
        "MixedLayer.begun",
    },  # rows of one form at a time: no fixed shapes
    "methods/gathering.py": {"Groups", "Laid", "Beside", "Each", "SHARED", "alike_together", "grouped"},
    "models/layers.py": {"ChannelsLast", "Linear.onto"},  # torch has convolutions as timm has them, and adds in place
    "quant/affine.py": {"QuantizedLinear.onto"},
    "methods/importance.py": {"Importance.observed", "Importance.observe"},  # the one gives, the other changes
    "models/gelu.py": {"LIMIT", "PHI", "SLOPE", "erf_gelu", "rational_gelu"},
    "models/stochastic.py": {"current_key", "next_key"},
    "model.py": {"Model.put", "Model.on_device", "Model.read"},
    "parameters.py": {"kernels", "to_mlx", "to_timm"},
    "trainer.py": {"Trainer.loss_of"},
    "training.py": {
        *("Slots", "Group", "COUNTED", "laid_out"),
        *(f"Update.{own}" for own in ("initial_slots", "state", "shapes", "load_state")),
    },
}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_twins_have_the_same_public_names(module):
    ours, theirs = (set(public(side / module)) for side in (MLX, TORCH))
    assert ours ^ theirs <= ONLY_HERE.get(str(module), set())


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ("models", "methods", "quant")], ids=str)
def test_twins_of_models_and_methods_promise_the_same(module):
    ours, theirs = (public(side / module) for side in (MLX, TORCH))
    frameworks_own = {"recomputed", "randomness", "PatchProjection"}  # how it is done differs, and is what they tell
    for name in (ours.keys() & theirs.keys()) - frameworks_own:
        assert ours[name] == theirs[name], name


def test_the_torch_side_has_no_module_that_mlx_lacks():
    theirs = {p.relative_to(TORCH) for p in TORCH.rglob("*.py") if p.relative_to(TORCH).parts[0] not in ONLY_TORCH}
    assert theirs == set(MODULES)
