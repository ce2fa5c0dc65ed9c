"""What a run can do, but hardly anybody means."""

from se_flax.training.fine_tune import other_view
from se_flax.training.recipe import Plan


def doubts(plan: Plan) -> list[str]:
    """Returns a line for each value of a config that is valid and almost surely a mistake."""
    c = plan.config
    lines = other_view(c) if c.init_from else []
    if 0 < max(c.mean) <= 1 or max(c.std) < 1:
        scaled = (','.join(f'{255 * v:g}' for v in values) for values in (c.mean, c.std))
        lines.append(
            f'mean={tuple(c.mean)} and std={tuple(c.std)}: pixels are 0 to 255 here; for those of '
            '0 to 1 it is --config.mean={} --config.std={}'.format(*scaled)
        )
    if c.eval_resize > 2 * c.image_size:
        lines.append(
            f'eval_resize={c.eval_resize}: evaluation sees only the centre, {c.image_size} pixels'
        )
    epochs = plan.num_steps / plan.steps_per_epoch
    if c.schedule == 'step' and (late := [drop for drop in c.drop_epochs if drop >= epochs]):
        lines.append(
            f'drop_epochs={tuple(c.drop_epochs)}: the run ends after {epochs:.4g} epochs, so the '
            f'rate does not fall at {", ".join(f"{drop:g}" for drop in late)}'
        )
    if c.batch_size > len(plan.train_set):
        lines.append(
            f'batch_size={c.batch_size}: a batch has all {len(plan.train_set):,} training images, '
            'some of them twice'
        )
    if c.ema and (1 - c.ema) * plan.num_steps < 1:
        lines.append(
            f'ema={c.ema}: an average over some {1 / (1 - c.ema):,.0f} steps, and the run has '
            f'{plan.num_steps:,}; what is evaluated is mostly the start'
        )
    return lines
