"""The studies' recipe: a tenth of Fashion-MNIST's size in time, all of its test images.

    se-flax ablate nosqueeze --config docs/experiments/fashion.py --out runs/nosqueeze

Needs `se-flax data prepare fashion_mnist`. Each seed trains on its own 10,000 of the 60,000 images,
both networks of a pair on the same ones, and is evaluated on all 10,000 test images.
"""

from se_flax.training.config import load_config


def get_config(model: str = 'se_resnet14_cifar'):
    c = load_config('quickstart')
    c.model = model
    c.model_fields.width = 16  # as in the paper's networks for CIFAR
    c.model_fields.zero_init = False  # as in the paper

    c.data = 'fashion_mnist'
    c.train_examples = 10_000
    c.num_steps = 2_000  # 12.8 epochs of 10,000 images

    c.eval_every_epochs = c.checkpoint_every_epochs = None  # at the end
    c.checkpoint_every_steps = 500
    c.eval_batch_size = 500
    return c
