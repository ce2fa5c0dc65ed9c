"""ResNet-RS-50 on ImageNet-1k (arXiv 2103.07579).

    python train_main.py --config=configs/resnet_rs.py --workdir=runs/resnet_rs50

Hardware: the paper used TPUs with a batch of 4,096. Use any number of devices that divides the
batch; `--config.base_batch_size=4096` scales the learning rate with another batch.

Paper (one crop of 160 pixels), top-1 error in %: 21.2.
Ours: not run yet.

From the authors' resnetrs50_i160.yaml, which has no stochastic depth for this size. Its RandAugment
has TensorFlow's operations and applies each one drawn; ours has timm's, without Cutout, and applies
one with probability 0.5. Not in that file: the cosine, which is the paper's, Nesterov momentum and
the warmup, which are those of the authors' other ResNets, and the resize for evaluation (32 pixels
more, as in their program when the paper appeared; later an eighth is cut off). BatchNorm groups
are 32 images, and weight decay acts on kernels only, theirs on biases too.
"""

from se_flax.training.config import base_config


def get_config():
    c = base_config()
    c.model = 'timm_resnetrs50'
    c.model_fields.dropout = 0.25
    c.model_fields.bn_momentum = 0.0  # the average of the weights averages the statistics too
    c.dtype = 'bfloat16'

    c.data = 'imagenet2012'
    c.image_size = 160
    c.mean = (123.675, 116.28, 103.53)
    c.std = (58.395, 57.12, 57.375)
    c.fill = (128, 128, 128)
    c.interpolation = 'bicubic'
    c.ra_operations = 2
    c.ra_magnitude = 10.0
    c.ra_std = 0.0
    c.ra_increasing = False
    c.eval_resize = 192

    c.batch_size = 4096
    c.num_epochs = 350.0
    c.schedule = 'cosine'
    c.learning_rate = 1.6  # 0.1 for 256 images
    c.warmup = 5 / 350
    c.nesterov = True
    c.weight_decay = 4e-5
    c.label_smoothing = 0.1
    c.ema = 0.9999
    c.ema_warmup = True

    c.eval_batch_size = 1024
    return c
