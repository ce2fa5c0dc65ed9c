"""What a user's type checker sees: mypy reads this file (`[tool.mypy]`), nothing runs it."""

import pathlib
from collections.abc import Iterator
from typing import Any, assert_type

import jax
import numpy as np
import optax
from flax import linen as nn

from se_flax import (
    BatchNorm,
    SqueezeExcite,
    create_model,
    fold_batch_norm,
    list_models,
    model_info,
)
from se_flax.data import (
    Dataset,
    EvalTransform,
    TrainTransform,
    eval_batches,
    open_dataset,
    train_batches,
)
from se_flax.evaluation import in_top, normalize, wilson
from se_flax.evaluation.evaluator import Evaluation, Evaluator
from se_flax.evaluation.evaluator import Network as WithPreprocessing
from se_flax.export import export_network, save_exported
from se_flax.inference import evaluate_networks, open_run, predict
from se_flax.models import Network, PaperResult, ResNet
from se_flax.nn import Affine, Conv, adaptive_avg_pool, avg_pool, max_pool, relu_of_sum, shake, silu
from se_flax.parallel import data_mesh
from se_flax.training.config import base_config
from se_flax.training.optimizer import make_optimizer, make_schedule
from se_flax.training.run import run
from se_flax.training.state import TrainState, make_init
from se_flax.training.step import TrainStep, jit_train_step, make_train_step
from se_flax.weights import (
    WeightsInfo,
    convert,
    from_caffe,
    from_hub,
    from_torch,
    load_weights,
    read_info,
    save_weights,
)


def networks(images: jax.Array) -> None:
    assert_type(list_models('se_*'), list[str])
    info = model_info('se_resnet50')
    assert_type(info.params, int)
    assert_type(info.paper, PaperResult | None)
    model = create_model('se_resnet50', num_classes=10, se={'reduction': 8})
    assert_type(model, Network)
    assert_type(model.num_classes, int)
    assert_type(model.clone(dtype=jax.numpy.bfloat16), Network)
    folded, variables = fold_batch_norm(model, model.init(jax.random.key(0), images))
    assert_type(folded, Network)
    assert_type(variables, dict[str, Any])
    resnet = ResNet(stage_sizes=(3, 4, 6, 3), se=SqueezeExcite)
    assert_type(resnet(images, train=True), jax.Array)
    assert_type(resnet.features(images), dict[str, jax.Array])
    create_model(50)  # type: ignore[arg-type]


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = assert_type(Conv(self.features, kernel_size=3, strides=2, name='conv')(x), jax.Array)
        y = assert_type(BatchNorm(use_running_average=not train)(y), jax.Array)
        lazy = BatchNorm(use_running_average=not train, group_size=32).affine(y)
        assert_type(lazy, Affine)
        assert_type(SqueezeExcite(reduction=8)(lazy), Affine)
        assert_type(SqueezeExcite(8, squeeze=None)(y), jax.Array)
        SqueezeExcite(reductoin=8)  # type: ignore[call-arg]
        SqueezeExcite(reduction='8')  # type: ignore[arg-type]
        assert_type(avg_pool(y, padding=1, count_pad=False), jax.Array)
        assert_type(adaptive_avg_pool(y, 7), jax.Array)
        assert_type(relu_of_sum(y + y), jax.Array)
        assert_type(silu(y), jax.Array)
        assert_type(shake(y, y, self.make_rng('shake') if train else None), jax.Array)
        return max_pool(y, ceil=True)


def weights(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    name, variables = load_weights(path)
    assert_type(name, str)
    assert_type(variables, dict[str, Any])
    info = read_info(path)
    assert_type(info, WeightsInfo)
    view = info.preprocessing
    assert_type(view.mean, tuple[float, ...])
    save_weights(path, name, variables, view, class_names=info.class_names)
    assert_type(from_torch('se_resnet50', tensors, groups=1), dict[str, Any])
    assert_type(from_caffe('senet154', 'senet154.caffemodel'), dict[str, Any])
    assert_type(from_hub('timm/seresnet50.a1_in1k'), tuple[str, dict[str, Any]])
    assert_type(convert('hub:timm/seresnet50.a1_in1k', None, path), WeightsInfo)
    model = create_model(name, info.num_classes, **info.fields)
    exported = export_network(model, variables, view.image_size, mean=view.mean, std=view.std)
    assert_type(exported, jax.export.Exported)
    save_exported(path, exported)


def data(train_view: TrainTransform, eval_view: EvalTransform) -> Iterator[dict[str, np.ndarray]]:
    dataset = open_dataset('cifar10', 'train')
    assert_type(dataset, Dataset)
    assert_type(dataset.num_classes, int)
    batches = train_batches(dataset, train_view, batch_size=128, seed=0, start_step=0, num_steps=10)
    assert_type(batches, Iterator[dict[str, np.ndarray]])
    return eval_batches(open_dataset('cifar10', 'eval'), eval_view, batch_size=128)


def step(batches: Iterator[dict[str, np.ndarray]]) -> None:
    mean, std = (127.5,) * 3, (127.5,) * 3
    model, mesh = create_model('se_resnet20_cifar'), data_mesh()
    schedule: optax.Schedule = make_schedule('cosine', 0.1, 10)
    tx = make_optimizer(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4)
    state = make_init(model, tx, 32, mesh)(jax.random.key(0))
    assert_type(state, TrainState)
    train_step = jit_train_step(make_train_step(model, tx, schedule, mean=mean, std=std), mesh)
    assert_type(train_step, TrainStep)
    assert_type(state.variables, dict[str, Any])
    network = WithPreprocessing(model, None, EvalTransform(32), mean, std)
    evaluator = Evaluator([network], open_dataset('cifar10', 'eval'), mesh, batch_size=100)
    assert_type(evaluator.run([state.variables]).summary(), dict[str, float])


def scores(images: jax.Array, labels: jax.Array, logits: jax.Array) -> None:
    assert_type(normalize(images, (127.5,) * 3, [127.5] * 3, 'bfloat16'), jax.Array)
    assert_type(in_top(5, logits, labels), jax.Array)
    assert_type(wilson(10, 100), tuple[float, float])


def runs() -> None:
    config = base_config()
    assert_type(run(config, 'runs/mine'), dict[str, Any])
    trained = open_run('runs/mine')
    assert_type(trained.network.model, Network)
    assert_type(trained.step, int | None)
    assert_type(evaluate_networks([trained]), Evaluation)
    for image, classes in predict(trained, [pathlib.Path('shirt.png')]):
        assert_type(image, str)
        assert_type(classes, list[tuple[str, float]] | None)
