"""ImageNet-1k as in the paper's ablations (section 6); differs from imagenet.py.

    python train_main.py --config=configs/ablation.py:se_resnet50 --workdir=runs/ablation

The rate falls where the validation loss has stopped to; the paper's fixed alternative is

    python train_main.py --config=configs/ablation.py:se_resnet50 --workdir=runs/ablation_fixed \
        --config.schedule=step --config.num_epochs=270

What is ablated are fields of the network: `--config.model_fields.se.reduction=8`,
`--config.model_fields.se.squeeze=max`, `--config.model_fields.placement=pre`.

Hardware: the paper's server had 8 GPUs; here any number of devices that divides the batch, or one
with `--config.accumulate=8`.

Paper (one crop of 224), top-1 / top-5 error in %: resnet50 23.30 / 6.55, se_resnet50 22.28 / 6.03,
the others in Tables 10 to 16; fixed (footnote 2): resnet50 23.21 / 6.53, se_resnet50 22.20 / 6.00.
Ours: not run yet.

Not published: when the loss counts as stopped (drop_patience is ours), the batch size (256 is of
the authors' issue 62), the amount of label smoothing (0.1 is that of the paper it cites) and the
weight decay beyond issue 37. "About 300 epochs" is all that is said of the length.
"""

import pathlib

import ml_collections

from se_flax.training.config import load_config

TABLE2 = pathlib.Path(__file__).with_name('imagenet.py')


def get_config(model: str = 'se_resnet50') -> ml_collections.ConfigDict:
    c = load_config(f'{TABLE2}:{model}')
    if model.startswith('se_'):
        c.model_fields.se = {'use_bias': False}

    c.batch_size = 256
    c.num_epochs = 300.0
    c.schedule = 'plateau'
    c.learning_rate = 0.1
    c.drop_patience = 10  # epochs, as there is an evaluation after each
    c.max_drops = 3
    c.drop_epochs = (125, 200, 250)  # of the fixed alternative
    c.label_smoothing = 0.1

    c.eval_batch_size = 256
    return c
