"""Fine-tuning on a folder of images, for one GPU; not a recipe of the paper.

    python train_main.py --config=configs/fine_tune.py --config.data=folder:PATH \
        --config.init_from=seresnet50.safetensors --workdir=runs/fine_tune

Make the weights file by `se-flax convert hub:timm/seresnet50.a1_in1k --out seresnet50.safetensors`,
or by `se-flax convert WORKDIR --out FILE.safetensors` from a run. It determines the network and the
preprocessing. Fields that are set explicitly take precedence where possible.
No result is published; it depends on the data.
"""

from se_flax.training.config import OF_WEIGHTS, base_config


def get_config():
    c = base_config()
    for name in OF_WEIGHTS:
        c[name] = None  # taken from the weights file
    c.bn_group_size = 0  # statistics of the whole batch, which is small and often on one device

    c.exif_orientation = True  # for photos from phones and cameras
    c.crop = 'inception'
    c.crop_area = (0.25, 1.0)  # milder than for training from scratch

    c.batch_size = 64
    c.num_epochs = 20.0
    c.schedule = 'cosine'
    c.learning_rate = 0.01
    c.warmup = 0.05
    c.momentum = 0.9
    c.weight_decay = 1e-4
    c.label_smoothing = 0.1

    c.log_every_steps = 10
    c.eval_batch_size = 64
    return c
