"""A small SE-ResNet on real product photographs that ship with the install; no download, no GPU.

    python train_main.py

Ours: RESULT
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.model = 'se_resnet8_cifar'  # one SE block a stage
    c.model_fields = ml_collections.ConfigDict()  # of the network's class, see se_flax.ResNet
    c.model_fields.width = 32  # channels of the stages: 32, 64, 128
    c.model_fields.stem_strides = 2  # 28x28 is 14x14 from there on: a quarter of the work
    c.model_fields.zero_init = True  # units start as identities
    c.bn_group_size = 32  # images that share BatchNorm statistics, as on one GPU of the paper
    c.dtype = 'float32'  # of the maps; 'bfloat16' on accelerators

    c.data = 'fashion_mnist_mini'  # 10,000 training and 2,000 test images, 10 classes
    c.data_dir = ''  # of tfds; '' is its default, ~/tensorflow_datasets
    c.image_size = 28
    c.mean = (73.0, 73.0, 73.0)  # of the training pixels, 0 to 255
    c.std = (90.0, 90.0, 90.0)
    c.crop = 'pad'  # shift by up to `pad` pixels; 'inception' is the ImageNet crop
    c.pad = 1
    c.fill = (0, 0, 0)  # colour beyond the border
    c.flip = True
    c.cutout = 0  # side of the square, pixels; 0 is none
    c.eval_resize = 0  # shorter edge before the centre crop; 0 keeps the stored size
    c.interpolation = 'bilinear'
    c.cache = True  # decode once into memory; for sets that fit
    c.max_corrupt = 0.0  # share of unreadable images that is replaced and logged, not fatal

    c.batch_size = 64  # global; a multiple of bn_group_size
    c.num_epochs = 14.0
    c.num_steps = config_dict.placeholder(int)  # wins over num_epochs
    c.schedule = 'cosine'  # or 'constant', 'linear', 'step'
    c.learning_rate = 0.1  # the peak, for this batch size; nothing scales it
    c.warmup = 0.2  # share of the run in which the rate rises from 0
    c.drop_epochs = ()  # for 'step': where the rate is multiplied by drop_factor
    c.drop_factor = 0.1
    c.momentum = 0.9
    c.nesterov = False
    c.weight_decay = 5e-4  # kernels only, SE's included
    c.label_smoothing = 0.0

    c.log_every_steps = 50  # each of the three: steps win over epochs
    c.log_every_epochs = config_dict.placeholder(float)
    c.eval_every_steps = config_dict.placeholder(int)
    c.eval_every_epochs = 1.0
    c.checkpoint_every_steps = config_dict.placeholder(int)
    c.checkpoint_every_epochs = 1.0
    c.keep_checkpoints = 2
    c.eval_batch_size = 200
    c.num_threads = 0  # that load data; 0 is one a core. Changes no pixel.
    c.num_workers = 0  # loader processes, for very many cores. Changes no pixel.
    c.compilation_cache = '~/.cache/se_flax'  # of XLA; '' switches it off
    return c
