"""What an architecture is in files."""

import json

from mlx_peft.vit.architecture import LATER, Architecture
from mlx_peft.vit.registry import altered


def test_files_hold_the_fields_that_earlier_versions_know():
    architecture = Architecture(img_size=96, norm_eps=1e-5, init_values=0.1)
    written = architecture.model_dump(mode="json")
    assert written.keys() == Architecture.model_fields.keys() - set(LATER)
    assert json.loads(architecture.model_dump_json()) == written
    assert altered(Architecture(), json.loads(json.dumps(written)), "config.json") == architecture
    assert altered(Architecture(), {"positions": "learnt", "qkv": "fused"}, "model.args") == Architecture()
