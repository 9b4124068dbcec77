"""Relative positions against timm's ``Beit``: among prompts, where patches were dropped, resized."""

import numpy as np
import pytest
import seams
import torch  # before MLX: see mlx_peft.backend.blas
from comparing import LOGITS, relative
from methods.small_beit import ARGS, of_timm
from seams import LEFT, pixels
from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import Beit

from mlx_peft.vit.relative import grid_of, resize_table, rows, rows_of

PROMPTS = {"name": "vpt", "tokens": 4, "deep": True}


@torch.no_grad()
def transcribed(model: Beit, images: torch.Tensor, prompts: dict[int, torch.Tensor], left: np.ndarray | None):
    """timm's blocks, half by half, with the rows and columns of their biases that belong to the tokens there are:
    zero for prompts, which stand behind the class token; after the first attention only some patch tokens are left."""
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
    kept = torch.arange(17).expand(len(x), -1)
    for number, block in enumerate(model.blocks):
        prompt = prompts.get(number, torch.zeros(1, 0, 48)).expand(len(x), -1, -1)
        many = prompt.shape[1]
        bias = block.attn._get_rel_pos_bias().expand(len(x), -1, -1, -1)
        bias = bias.take_along_dim(kept[:, None, :, None], dim=2).take_along_dim(kept[:, None, None], dim=3)
        whole = torch.zeros(*bias.shape[:2], bias.shape[2] + many, bias.shape[3] + many)
        own = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1 + many, whole.shape[2])])
        whole[:, :, own[:, None], own] = bias
        x = torch.cat([x[:, :1], prompt, x[:, 1:]], dim=1)
        table, block.attn.relative_position_bias_table = block.attn.relative_position_bias_table, None
        x = x + block.gamma_1 * block.attn(block.norm1(x), shared_rel_pos_bias=whole)
        block.attn.relative_position_bias_table = table
        x = torch.cat([x[:, :1], x[:, 1 + many :]], dim=1)
        if number == 0 and left is not None:
            kept = torch.cat([torch.zeros(len(x), 1, dtype=torch.long), 1 + torch.from_numpy(left)], dim=1)
            x = x.take_along_dim(kept[..., None], dim=1)
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x)).numpy()


@pytest.mark.parametrize("pool", ["avg", "token"])
@pytest.mark.parametrize("left", [None, LEFT], ids=["all patches", "some patches"])
def test_each_token_keeps_its_place_among_prompts_and_where_others_are_dropped(build, batch, away, left, pool):
    model = {"args": ARGS | {"global_pool": pool}}
    weights = away(build({"name": "full"}, model).model.adapter(), 0.3)
    trainer = build(PROMPTS, model, weights=weights)
    tensors = away(trainer.model.adapter(), 0.5) | {n: t for n, t in weights.items() if "head" in n}
    trainer.model.load_adapter(tensors)
    for block in trainer.model.network.blocks:
        block.before = "patch"
    if left is not None:
        seams.block(trainer, 0).reducer = seams.dropping(trainer, left)
    reference = of_timm(weights, global_pool=pool)
    prompts = {int(n.split(".")[1]): torch.from_numpy(t) for n, t in tensors.items() if n.endswith("prompts")}
    expected = transcribed(reference, pixels(trainer, batch[0]), prompts, left)
    assert relative(trainer.model.logits(batch[0]), expected) <= LOGITS


def test_rows_are_timms() -> None:
    from timm.models.beit import gen_relative_position_index

    for grid in (1, 3, 4):
        found = rows(grid)
        np.testing.assert_array_equal(found[:-1, :-1], gen_relative_position_index((grid, grid)).numpy())
        assert (found[-1] == rows_of(grid)).all() and (found[:, -1] == rows_of(grid)).all()


@pytest.mark.parametrize(("grid", "target"), [(14, 24), (14, 32), (4, 6), (14, 8), (6, 4), (1, 3), (3, 1)])
def test_a_table_is_resized_as_timm_resizes_it(grid: int, target: int) -> None:
    table = np.random.default_rng(0).standard_normal((rows_of(grid), 3), np.float32)
    expected = resize_rel_pos_bias_table(torch.from_numpy(table), (target, target), (rows_of(target), 3)).numpy()
    found = resize_table(table, target)
    assert (found.dtype, grid_of(len(found))) == (np.float32, target)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)  # its distances are of float32


def test_no_grid_has_so_many_rows() -> None:
    assert [grid_of(rows) for rows in (0, 3, 4, 5, 12, 13, 732)] == [None, None, 1, None, 2, None, 14]
