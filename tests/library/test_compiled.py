"""A compiled model answers as the model did, for any number of images and from any thread, until it is closed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from library.conftest import CLASSES, SIZE, create

import mlx_peft.backend.models.vit
from mlx_peft.checks.precision import LOGITS, allowed
from mlx_peft.config.methods import VPT, LoRA
from mlx_peft.config.quantization import Quantization
from mlx_peft.core.errors import UserError
from mlx_peft.library.prediction import Prediction
from mlx_peft.library.thread import DeviceThread

SAME = 5e-6
"""Relative, of float32: some roundings (6e-8) a layer. Merging and another number of rows change the order of sums
alone, on a CPU with wide registers by 1.2e-6."""

BUCKETS = (1, 2, 4)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def adapted(mp, method=LoRA(rank=4, targets=("all-linear",)), **options):  # noqa: B008
    """A model whose adapter does something."""
    model = create(mp, **options)
    mp.add_adapter(model, method)
    library = mp.create_model.__self__
    tensors, random = library.framework.stored(model), np.random.default_rng(1)
    library.framework.load_adapter(
        model, {name: t + 0.1 * random.standard_normal(t.shape).astype(np.float32) for name, t in tensors.items()}
    )
    return model


@pytest.mark.parametrize("method", [LoRA(rank=4, targets=("all-linear",)), LoRA(rank=2, dora=True), VPT(tokens=2)])
def test_any_number_of_images_is_answered_as_the_model_answers_them(mp, images, method):
    model = adapted(mp, method)
    with mp.compiled(model, buckets=BUCKETS) as compiled:
        assert compiled.precision == "float32" and compiled.merged == (method.name != "vpt")
        for count in (1, 2, 3, 4, 5, 8):
            found, expected = compiled.logits(images[:count]), model.logits(images[:count])
            assert found.shape == expected.shape and found.dtype == np.float32
            assert relative(found, expected) < SAME
        features = compiled.features(images[:3])
        assert features.dtype == np.float32
        head = mp.state_dict(model)
        again = features @ head["head.weight"].T + head["head.bias"]
        assert relative(again, model.logits(images[:3])) < SAME
        assert compiled.logits(images[:0]).shape == (0, len(CLASSES)) and compiled.features(images[:0]).shape[0] == 0


def test_it_predicts_as_the_model_does(mp, images):
    model = adapted(mp)
    with mp.compiled(model, buckets=BUCKETS) as compiled:
        one = compiled.predict(images[0])
        assert isinstance(one, Prediction) and one.names == model.predict(images[0]).names
        larger = np.random.default_rng(2).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
        assert compiled.predict(larger).names == model.predict(larger).names


def test_a_model_of_two_heads_and_one_in_codes_answer_likewise(mp, images):
    """What cannot be merged into codes stays beside them."""
    distilled = adapted(mp, name="deit_tiny_distilled_patch16_224")
    args = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    coded = adapted(mp, LoRA(rank=2), quantize=Quantization(bits=4, group_size=32), args=args)
    for model, merged in ((distilled, True), (coded, False)):
        with mp.compiled(model, buckets=(4,)) as compiled:
            assert compiled.merged == merged
            assert relative(compiled.logits(images[:3]), model.logits(images[:3])) < SAME


def test_bfloat16_is_as_near_as_its_roundings_allow(mp, images):
    model = adapted(mp)
    expected = model.logits(images)
    with mp.compiled(model, "bfloat16", buckets=(8,)) as compiled:
        error = relative(compiled.logits(images), expected)
    assert 2.0**-12 < error < allowed(LOGITS, "bfloat16", model.architecture.depth)  # it was computed in bfloat16


def test_the_model_goes_on_and_the_compiled_one_stays(mp, images, labels):
    model = adapted(mp)
    before = mp.state_dict(model)
    with mp.compiled(model, buckets=(8,)) as compiled:
        first = compiled.logits(images)
        assert all(np.array_equal(before[name], tensor) for name, tensor in mp.state_dict(model).items())
        mp.training_step(model, mp.optimizer(model, lr=0.1))(images, labels)
        assert relative(model.logits(images), first) > 1000 * SAME
        assert np.array_equal(compiled.logits(images), first)


def test_threads_that_ask_at_once_get_each_its_own_answers(mp, images):
    with mp.compiled(adapted(mp), buckets=BUCKETS) as compiled, ThreadPoolExecutor(8) as pool:
        expected = [compiled.logits(images[[row]]) for row in range(8)]

        def ask(number: int) -> bool:
            rows = [(number + step) % 8 for step in range(1 + number % 7)]
            found = compiled.logits(images[rows])
            return relative(found, np.concatenate([expected[row] for row in rows])) < SAME

        assert all(pool.map(ask, range(64)))


def test_a_model_that_another_thread_made_is_compiled(mp, images):
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(adapted, mp).result()
        compiled = pool.submit(mp.compiled, model, None, (2,)).result()
    with compiled:
        assert np.isfinite(compiled.logits(images)).all()


def test_what_goes_wrong_in_the_device_s_thread_is_raised_where_it_was_asked_for(mp, images):
    with mp.compiled(create(mp), buckets=(2,)) as compiled:
        program = compiled._program
        compiled._program = lambda images: (_ for _ in ()).throw(MemoryError("of the device"))
        with pytest.raises(MemoryError, match="of the device"):
            compiled.logits(images)
        compiled._program = program
        assert compiled.logits(images).shape == (8, len(CLASSES))  # the next is answered


def test_one_that_cannot_be_warmed_leaves_no_thread_behind(mp, monkeypatch):
    model, before = create(mp), threading.active_count()
    program = mp.create_model.__self__.framework.program

    class Failing(program):
        def __call__(self, images):
            raise MemoryError

    library = mp.create_model.__self__
    monkeypatch.setattr(library, "framework", type(library.framework)(**vars(library.framework) | {"program": Failing}))
    with pytest.raises(MemoryError):
        library.compiled(model)
    assert threading.active_count() == before


def test_closing_answers_what_was_asked_and_refuses_what_is_asked_later(mp, images):
    compiled = mp.compiled(create(mp), buckets=(1,))
    with ThreadPoolExecutor(4) as pool:
        thread, begin, begun = compiled._thread, compiled._thread.begin, threading.Barrier(5)
        thread.begin = lambda *given: (begin(*given), begun.wait())[0]
        asked = [pool.submit(compiled.logits, images[[row]]) for row in range(4)]
        begun.wait()
        compiled.close()
        assert [one.result().shape for one in asked] == [(1, len(CLASSES))] * 4
        thread.begin = begin
    with pytest.raises(UserError, match="the compiled model is closed"):
        compiled.logits(images)
    compiled.close()


def test_a_forked_process_is_told_that_it_does_not_have_the_thread():
    """It would wait for it for ever."""
    thread = DeviceThread("the compiled model")
    assert thread.call(abs, -1) == 1
    child = os.fork()
    if child == 0:
        try:
            thread.call(abs, -1)
            code = 1
        except UserError as error:
            code = 0 if "was forked from that" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.close()


def test_a_size_is_compiled_once(images, monkeypatch, compiled):
    """MLX traces a network once for each bucket, when it is compiled, and never again."""
    import mlx_peft as mp

    model, traces = create(mp), []
    network = mlx_peft.backend.models.vit.VisionTransformer
    prefix = network.prefix
    monkeypatch.setattr(network, "prefix", lambda self, x, end: traces.append(len(x)) or prefix(self, x, end))
    with mp.compiled(model, buckets=np.array([2, 1])) as found:
        assert traces == [2, 1]
        for count in (1, 2, 3, 8):
            assert relative(found.logits(images[:count]), model.logits(images[:count])) < SAME
        assert traces == [2, 1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"precision": "float8"}, "precision should be one of float32, tf32, bfloat16, float16, not 'float8'"),
        ({"buckets": ()}, "buckets should be numbers of images"),
        ({"buckets": (0, 2)}, "buckets should be numbers of images"),
        ({"buckets": 4.5}, "buckets should be numbers of images"),
    ],
)
def test_what_cannot_be_compiled_is_refused(mp, asked, words):
    with pytest.raises(UserError, match=words):
        mp.compiled(create(mp), **asked)
    with pytest.raises(UserError, match="a model is wanted"):
        mp.compiled(None)


def test_images_of_another_kind_are_refused(mp, images):
    with mp.compiled(create(mp), buckets=(1,)) as compiled:
        for other in (images[0], images / 255.0, images[:, :16], [images], np.zeros((1, SIZE, SIZE, 1), np.uint8)):
            with pytest.raises(UserError, match=r"images should be an array of uint8, \(images, 32, 32, 3\), not"):
                compiled.logits(other)


ENDING = """
import numpy as np
import mlx_peft as mp

args = {"patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
model = mp.create_model("vit_tiny_patch16_224", weights="none", num_classes=3, image_size=16, args=args)
compiled = mp.compiled(model, buckets=(1,))
print(compiled.logits(np.zeros((1, 16, 16, 3), np.uint8)).shape)
"""


def test_a_process_that_closes_nothing_ends_well(compiled):
    """MLX aborts most processes of which a thread that computed a compiled program has ended with its streams."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1, 3)\n"), done.stderr
