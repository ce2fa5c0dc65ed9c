"""One self-contained HTML page of a study or of a run."""

import base64
import html
import importlib.resources
import json
import string

import ml_collections
from markdown_it import MarkdownIt

from se_flax import tables
from se_flax.analysis import results
from se_flax.analysis.excitation import EXCITATION
from se_flax.analysis.plan import PLAN, load_plan
from se_flax.analysis.plots import draw_study
from se_flax.errors import MissingError
from se_flax.storage import AnyPath
from se_flax.training.curves import draw_curves, png
from se_flax.training.metrics_log import read_rows
from se_flax.training.workdir import CONFIG, finished, read_config


def report(directory: AnyPath) -> str:
    """Returns the page of a study's folder or a run's workdir; it loads nothing from elsewhere.

    Raises MissingError for any other folder.
    """
    if (directory / PLAN).exists():
        config, parts = _study(directory)
    elif (directory / CONFIG).exists():
        config, parts = _run(directory)
    else:
        raise MissingError(f'{directory} is neither a study (no {PLAN}) nor a run (no {CONFIG})')
    fields = sorted(json.loads(config.to_json()).items())
    lines = '\n'.join(f'{name} = {json.dumps(value)}' for name, value in fields)
    parts += ['## Config', f'```\n{lines}\n```']
    title = html.escape(parts[0].removeprefix('# '))
    body = MarkdownIt('js-default').render('\n\n'.join(parts))
    page = importlib.resources.files('se_flax.analysis').joinpath('report.html').read_text()
    return string.Template(page).substitute(title=title, body=body)


def _study(directory: AnyPath) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Returns the config and the Markdown paragraphs of the page, its title first."""
    plan = load_plan(directory)
    rows = results.collect(plan, plan.tasks())
    if not rows:
        raise MissingError(f'{directory}: no run of this study has finished')
    parts = results.markdown(plan, rows).split('\n\n')
    figure = png(draw_study(plan.study.title, rows))
    parts.insert(2, _picture('Top-1 errors of each cell', figure))
    return plan.cell_config(plan.study.cells[0]), parts


def _run(directory: AnyPath) -> tuple[ml_collections.ConfigDict, list[str]]:
    config, class_names = read_config(directory)
    parts = [
        f'# {config.model} on {config.data}',
        f'{len(class_names)} classes of {config.data}, seed {config.seed}.',
    ]
    rows = read_rows(directory / 'metrics.jsonl')
    if rows:
        state = 'finished' if finished(directory) else 'not finished'
        parts.append(f'Step {rows[-1]["step"]:,}, {state}.')
        parts.append(_picture('Loss and top-1 accuracy by step', png(draw_curves(rows))))
    table = [['step', 'loss', 'top-1 error, %', 'top-5 error, %', 'images', 'seconds']]
    for row in rows:
        if row['split'] == 'eval':
            errors = (f'{100 * (1 - row[name]):.2f}' for name in ('top1', 'top5'))
            cells = (f'{row["examples"]:,}', f'{row["seconds"]:.1f}')
            table.append([f'{row["step"]:,}', f'{row["loss"]:.4f}', *errors, *cells])
    if len(table) > 1:
        parts += ['## Evaluations', tables.markdown(table)]
    folder = directory / EXCITATION
    if (folder / 'excitation.md').exists():
        parts.append((folder / 'excitation.md').read_text().replace('# ', '## '))
        for what in ('between', 'within'):
            picture = (folder / f'{what}_classes.png').read_bytes()
            parts.append(_picture(f'Gates {what} classes', picture))
    return config, parts


def _picture(text: str, content: bytes) -> str:
    return f'![{text}](data:image/png;base64,{base64.b64encode(content).decode()})'
