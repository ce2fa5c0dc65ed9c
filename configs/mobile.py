"""ImageNet-1k for the mobile networks of the paper's Table 3, based on imagenet.py.

    python train_main.py --config=configs/mobile.py:se_mobilenet --workdir=runs/se_mobilenet

Hardware: the paper used a server with 8 GPUs. Use any number of devices that divides the batch, or
one device with `--config.accumulate=8`.

Paper (its own re-runs; one crop of 224), top-1 / top-5 error in %: mobilenet 28.4 / 9.4,
se_mobilenet 25.3 / 7.7, shufflenet 32.6 / 12.5, se_shufflenet 31.0 / 11.1.
Ours: not run yet.

The weight decay is from version 3 of the paper. Not published: how much milder the augmentation is
(crop_area is our choice), when the loss counts as no longer falling (drop_patience is ours) and how
often the rate drops (max_drops is ours).
"""

from se_flax.training.config import load_config


def get_config(model: str = 'se_mobilenet'):
    c = load_config(f'imagenet:{model}')
    c.crop_area = (0.25, 1.0)  # "slightly less aggressive"

    c.batch_size = 256
    c.num_epochs = 400.0
    c.schedule = 'plateau'
    c.learning_rate = 0.1
    c.drop_patience = 10  # epochs, because each ends with an evaluation
    c.max_drops = 3
    c.weight_decay = 4e-5

    c.eval_batch_size = 256
    return c
