"""EfficientNet-B0 on ImageNet-1k with timm's recipe, which differs from the paper's (1905.11946).

    python train_main.py --config=configs/efficientnet.py --workdir=runs/efficientnet_b0

Hardware: 2 GPUs with 384 images each were used. Use any number of devices that divides the batch;
`--config.base_batch_size=768` scales the learning rate with another batch.

Published (timm's weights efficientnet_b0.ra_in1k; one crop of 224), top-1 / top-5 error in %:
22.30 / 6.46; the paper 22.9 / 6.7. timm's "Training Examples" have 4.7 in place of 6.46, which
looks like swapped digits (95.3 for 93.5).
Ours: not run yet.

Differs from timm's: BatchNorm groups are 32 images, the interpolation is not drawn at random, the
rate changes with each step and not once per epoch, and the last block's branch is dropped with the
full rate. Not published: the warmup (3 epochs were timm's default).
"""

from se_flax.training.config import base_config


def get_config(model: str = 'efficientnet_b0'):
    c = base_config()
    c.model = model
    c.model_fields.dropout = 0.2
    c.model_fields.drop_path = 0.2
    c.dtype = 'bfloat16'

    c.data = 'imagenet2012'
    c.mean = (123.675, 116.28, 103.53)
    c.std = (58.395, 57.12, 57.375)
    c.fill = (124, 116, 104)
    c.interpolation = 'bicubic_antialias'
    c.ra_operations = 2
    c.ra_magnitude = 9.0
    c.ra_increasing = False
    c.erasing = 0.2
    c.erasing_mode = 'pixel'

    c.batch_size = 768
    c.num_epochs = 450.0
    c.schedule = 'step'
    c.learning_rate = 0.048
    c.warmup = 3 / 450
    c.drop_epochs = tuple(round(2.4 * i, 1) for i in range(1, 188))
    c.drop_factor = 0.97
    c.optimizer = 'rmsprop'
    c.epsilon = 1e-3
    c.weight_decay = 1e-5
    c.label_smoothing = 0.1
    c.ema = 0.9999

    c.eval_batch_size = 1024
    return c
