"""Hugging Face's peft on timm's model, trained as a recipe says: ``peft_timm.py RECIPE KEY=VALUE ...``

Same images in the same order, same weights, schedule and optimiser as ``mlx-peft train`` with these arguments; peft's
own layers and their own initial values. Prints one JSON line: accuracy on the test split after the last epoch, seconds
of training, peak memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time

from convert.base import load_base
from mlx_peft.config.files import load
from mlx_peft.config.recipes import locate
from mlx_peft.data import eval_batches, open_dataset, steps_per_epoch, train_batches
from mlx_peft.training.evaluate import evaluate
from mlx_peft.training.schedule import learning_rate
from torch_ref.tools import peer

experiment = load(locate(sys.argv[1]), sys.argv[2:])
data, epochs = experiment.data, experiment.train.epochs
dataset = open_dataset(data)
classes = dataset.classes
base = load_base(experiment.model, len(classes), experiment.seed, classes=classes, task=dataset.task)
trainer = peer.build_trainer(experiment, len(dataset.classes), base)
size, per_epoch = base.architecture.img_size, steps_per_epoch(dataset.train, data.batch_size)
step, seconds = 0, 0.0
for epoch in range(epochs):
    start = time.perf_counter()
    for batch in train_batches(dataset.train, data, base.preprocessing, size, seed=experiment.seed, epoch=epoch):
        lr = learning_rate(step, epochs * per_epoch, experiment.train.optimizer.lr, experiment.train.schedule)
        loss = float(trainer.train_step(batch.images, batch.targets, lr))
        step += 1
    seconds += time.perf_counter() - start
    print(f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}", file=sys.stderr, flush=True)
metrics = evaluate(
    trainer, eval_batches(dataset.test, data, base.preprocessing, size), dataset.task, len(dataset.classes)
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
trained = sum(p.numel() for p in trainer.model.trained.values())
print(json.dumps({"test": metrics, "train_seconds": seconds, "peak_bytes": peak, "trained": trained}))
