"""ImageNet-1k as in the paper's ablations (section 6), based on imagenet.py.

    python train_main.py --config=configs/ablation.py:se_resnet50 --workdir=runs/ablation

The learning rate drops when the validation loss stops falling. The paper's alternative with fixed
drops is

    python train_main.py --config=configs/ablation.py:se_resnet50 --workdir=runs/ablation_fixed \
        --config.schedule=step --config.num_epochs=270

Ablate fields of the network: `--config.model_fields.se.reduction=8`,
`--config.model_fields.se.squeeze=max`, `--config.model_fields.placement=pre`.

Hardware: the paper used a server with 8 GPUs. Use any number of devices that divides the batch, or
one device with `--config.accumulate=8`.

Paper (one crop of 224), top-1 / top-5 error in %: resnet50 23.30 / 6.55, se_resnet50 22.28 / 6.03,
variants in Tables 10 to 16; fixed (footnote 2): resnet50 23.21 / 6.53, se_resnet50 22.20 / 6.00.
Ours: not run yet.

Not published: when the loss counts as no longer falling (drop_patience is our choice), the batch
size (256 is from the authors' issue 62), the amount of label smoothing (0.1 is from the paper that
is cited) and the weight decay (here from the authors' issue 37). The length is only given as "about
300 epochs".
"""

from se_flax.training.config import load_config


def get_config(model: str = 'se_resnet50'):
    c = load_config(f'imagenet:{model}')
    if model.startswith('se_'):
        c.model_fields.se = {'use_bias': False}

    c.batch_size = 256
    c.num_epochs = 300.0
    c.schedule = 'plateau'
    c.learning_rate = 0.1
    c.drop_patience = 10  # epochs, because each ends with an evaluation
    c.max_drops = 3
    c.drop_epochs = (125, 200, 250)  # for the alternative with fixed drops
    c.label_smoothing = 0.1

    c.eval_batch_size = 256
    return c
