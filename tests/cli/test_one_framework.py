"""A Mac without torch trains, and so does a GPU box without MLX.

Every day ``faults/test_structured.py`` does so with either alone; the programs themselves do here.
"""

import subprocess
import sys

import pytest
from hanging import HUNG

SMALL = "model.args={patch_size: 8, embed_dim: 24, depth: 1, num_heads: 3}"
OVERRIDES = ["model.weights=none", SMALL, "train.epochs=1", "data.batch_size=256", "method.targets=[qkv]"]
SCRIPT = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name in {missing!r}: raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())  # as if they were not installed
from mlx_peft.report import drawing
drawing.pdf = drawing.png = lambda figure, dpi: b""  # a third of the time, and the same whatever trained
from mlx_peft.cli import {main}
for sys.argv[1:] in {commands!r}:
    try:
        {main}()
    except SystemExit as end:
        if end.code:
            raise
"""


def run(main, missing, *commands):
    """Commands one after the other in one process, as importing a framework takes longer than any; the first to fail
    ends it."""
    commands = [list(map(str, arguments)) for arguments in commands]
    script = SCRIPT.format(main=main, missing=missing, commands=commands)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HUNG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "missing"),
    [("main", ["torch", "torchvision", "timm", "peft"]), ("torch_main", ["mlx", "mlx.core", "mlx.data"])],
    ids=["MLX alone", "torch alone"],
)
def test_training_evaluating_and_merging_need_one_framework(tmp_path, main, missing):
    out = tmp_path / "run"
    done = run(
        main,
        missing,
        ("train", "quickstart", *OVERRIDES, "--out", out),
        ("eval", out),
        ("merge", out, tmp_path / "merged"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(("main", "missing"), [("main", ["mlx", "mlx.core"]), ("torch_main", ["torch"])])
def test_a_missing_framework_is_named_with_what_installs_it(tmp_path, main, missing):
    done = run(main, missing, ("train", "quickstart", *OVERRIDES, "--out", tmp_path / "run"))
    assert done.returncode == 2
    assert "install it with: pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
