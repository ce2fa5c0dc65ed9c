"""One self-contained HTML page of a study or of a run."""

import base64
import html
import json
from collections.abc import Sequence

from se_flax.analysis.excitation import EXCITATION
from se_flax.analysis.plan import PLAN, load_plan
from se_flax.analysis.plots import draw_study, png
from se_flax.analysis.results import NOTES, collect, table
from se_flax.errors import MissingError
from se_flax.storage import AnyPath
from se_flax.training.curves import draw_curves
from se_flax.training.metrics_log import read_rows
from se_flax.training.workdir import CONFIG, finished, read_config

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 80rem; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #222; } tbody tr + tr > * { border-top: 1px solid #ddd; }
img { max-width: 100%; min-width: 40rem; } figure { margin: 1rem 0; overflow-x: auto; }
pre { overflow-x: auto; font-size: .8rem; } p { max-width: 45rem; }
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; } .wide, pre { overflow: visible; }
  img { min-width: 0; }
  table { font-size: 6.5pt; } th, td { padding: .15rem .25rem; white-space: normal; }
  pre { white-space: pre-wrap; margin: 0; } figure, tr { break-inside: avoid; }
}
"""


def report(directory: AnyPath) -> str:
    """Returns the page of a study's folder or a run's workdir; it asks nothing of the outside.

    Raises MissingError for another folder.
    """
    if (directory / PLAN).exists():
        return _study_page(directory)
    if (directory / CONFIG).exists():
        return _run_page(directory)
    raise MissingError(f'{directory} is no study (no {PLAN}) and no run (no {CONFIG})')


def _study_page(directory: AnyPath) -> str:
    plan = load_plan(directory)
    rows = collect(plan)
    if not rows:
        raise MissingError(f'{directory}: no run of this study has finished')
    done, planned = sum(len(row['seeds']) for row in rows), len(plan.tasks())
    told = ''.join(f' --config.{name}={text}' for name, text in plan.assignments)
    parts = [
        f'<p>{done} of {planned} runs of <code>{html.escape(plan.config + told)}</code>.</p>',
        _figure(png(draw_study(plan.study.title, rows)), 'Top-1 errors of each cell'),
        _table(table(rows)),
        f'<p>{html.escape(NOTES)}</p>',
    ]
    config = plan.cell_config(plan.study.cells[0])
    return _page(plan.study.title, [*parts, _config(config)])


def _run_page(directory: AnyPath) -> str:
    config, class_names = read_config(directory)
    rows = read_rows(directory / 'metrics.jsonl')
    evaluations = [row for row in rows if row['split'] == 'eval']
    ended = finished(directory) is not None
    parts = [
        f'<p>{len(class_names)} classes of {html.escape(config.data)}, seed {config.seed}.</p>'
    ]
    if rows:
        state = 'finished' if ended else 'not finished'
        parts.append(f'<p>Step {rows[-1]["step"]:,}, {state}.</p>')
        parts.append(_figure(png(draw_curves(rows)), 'Loss and top-1 accuracy by step'))
    if evaluations:
        head = ['step', 'loss', 'top-1 error, %', 'top-5 error, %', 'images', 'seconds']
        lines = [
            [
                f'{row["step"]:,}',
                f'{row["loss"]:.4f}',
                *(f'{100 * (1 - row[name]):.2f}' for name in ('top1', 'top5')),
                f'{row["examples"]:,}',
                f'{row["seconds"]:.1f}',
            ]
            for row in evaluations
        ]
        parts.append(f'<h2>Evaluations</h2>{_table([head, *lines])}')
    if (directory / EXCITATION / 'excitation.md').exists():
        parts.append(_excitation(directory / EXCITATION))
    return _page(f'{config.model} on {config.data}', [*parts, _config(config)])


def _excitation(folder: AnyPath) -> str:
    """Turns what `write_excitation` has written into HTML, its pictures behind it."""
    parts = []
    for paragraph in (folder / 'excitation.md').read_text().strip().split('\n\n'):
        if paragraph.startswith('#'):
            parts.append(f'<h2>{html.escape(paragraph.lstrip("# "))}</h2>')
        elif paragraph.startswith('|'):
            head, _, *body = paragraph.splitlines()
            parts.append(_table([line[2:-2].split(' | ') for line in (head, *body)]))
        else:
            parts.append(f'<p>{html.escape(paragraph)}</p>')
    for what in ('between', 'within'):
        picture = (folder / f'{what}_classes.png').read_bytes()
        parts.append(_figure(picture, f'Gates {what} classes'))
    return '\n'.join(parts)


def _page(title: str, parts: Sequence[str]) -> str:
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a browser asks for one
        f'<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n'
        + '\n'.join(parts)
        + '\n</body>\n</html>\n'
    )


def _figure(content: bytes, text: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells, tag):
        return f'<tr>{"".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)}</tr>'

    head, *body = rows
    body = '\n'.join(line(cells, 'td') for cells in body)
    return (
        f'<div class="wide"><table>\n<thead>{line(head, "th")}</thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def _config(config) -> str:
    fields = sorted(json.loads(config.to_json()).items())
    text = '\n'.join(f'{name} = {json.dumps(value)}' for name, value in fields)
    return f'<h2>Config</h2><pre>{html.escape(text)}</pre>'
