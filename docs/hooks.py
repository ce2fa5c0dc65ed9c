"""Hooks of mkdocs: generate the reference, and add files from outside `docs/` to the site.

A page marks where generated text goes: `<!-- generated: NAME -->`, NAME a key of GENERATED.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import os
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).parents[1]
MARK = re.compile(r'^<!-- generated: (\w+) -->$', re.MULTILINE)
# Code, which is skipped, or a relative link: text, path, anchor.
LINK = re.compile(
    r'```.*?```|`[^`\n]*`|\[([^][]*)\]\((?!\w+:|#)([^)#\s]+)((?:#[^)]*)?)\)', re.DOTALL
)
# Files outside `docs/` and the page of each; links to them and in them are rewritten.
OUTSIDE = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'project/contributing.md',
    'CHANGELOG.md': 'project/changelog.md',
    **{
        f'benchmarks/results/{path.name}': f'benchmarks/{path.name}'
        for path in sorted((ROOT / 'benchmarks' / 'results').glob('*.md'))
    },
}
INSIDE = {page: path for path, page in OUTSIDE.items()}
MODULES = {
    'se_flax.nn': 'Layers',
    'se_flax.models': 'Networks',
    'se_flax.nnx': 'NNX',
    'se_flax.weights': 'Weights',
    'se_flax.inference': 'Trained networks',
    'se_flax.export': 'Export',
    'se_flax.evaluation': 'Evaluation',
    'se_flax.data': 'Data',
    'se_flax.parallel': 'Devices',
    'se_flax.training.step': 'Training step',
    'se_flax.training.config': 'Config',
    'se_flax.training.run': 'Run',
}


def on_files(files, config):
    """Adds the pages of OUTSIDE."""
    from mkdocs.structure.files import File

    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Fills in generated text, and points links to where the site has their targets."""
    markdown = MARK.sub(lambda match: GENERATED[match[1]](), markdown)
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, page: str) -> str:
    """Rewrites links that are relative to a file of the repository for its page of the site.

    Of a link to a file that the site does not have, only the text is left.

    >>> rewrite_links('[speed](docs/explanations/speed.md)', 'index.md')
    '[speed](explanations/speed.md)'
    >>> rewrite_links('[cpu](../../benchmarks/results/cpu.md#x)', 'explanations/speed.md')
    '[cpu](../benchmarks/cpu.md#x)'
    """
    source = INSIDE.get(page, f'docs/{page}')

    def moved(match):
        if match[2] is None:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if target not in OUTSIDE and not target.startswith('docs/'):
            return match[1]
        target = OUTSIDE.get(target, target.removeprefix('docs/'))
        relative = posixpath.relpath(target, posixpath.dirname(page) or '.')
        return f'[{match[1]}]({relative}{match[3]})'

    return LINK.sub(moved, markdown)


def networks() -> str:
    """Returns the tables of the paper's networks and of all."""
    paper, every = (run_cli('models', *args, '--markdown') for args in (['--paper'], []))
    return f'## In the paper\n\n{paper}\n## All\n\n{every}'


def run_cli(*argv: str) -> str:
    """Returns what `se-flax` prints."""
    from se_flax import cli

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(argv) == 0
    return out.getvalue()


def fields() -> str:
    """Returns a table of every config field."""
    from se_flax.training.config import GROUPS

    tables = []
    for title, group in GROUPS.items():
        rows = [('field', 'default', 'unit', 'range', 'meaning')]
        rows += [
            (f'`{name}`', f'`{f.default!r}`', f.unit or '', range_of(f), f.help)
            for name, f in group.items()
        ]
        tables.append(f'## {title}\n\n{table(rows)}')
    return '\n\n'.join(tables)


def range_of(field) -> str:
    """Returns the values that a field may have, in words."""
    words = [f'{name} {value}' for name, _, value in field.bounds]
    if field.default is None:
        words.insert(0, f'`{field.type.__name__}`')
    if field.choices:
        words.append(', '.join(f'`{choice}`' for choice in field.choices))
    if field.optional:
        words.append('or `None`')
    if field.from_weights:
        words.append('or `None`, to read it from `init_from`')
    if field.machine:
        words.append('may change when a run is resumed')
    return '; '.join(words)


def table(rows) -> str:
    """Returns a Markdown table."""
    escaped = [[str(cell).replace('|', r'\|') for cell in row] for row in rows]
    lines = [' | '.join(row) for row in escaped]
    lines.insert(1, ' | '.join('---' for _ in rows[0]))
    return '\n'.join(f'| {line} |' for line in lines)


def commands() -> str:
    """Returns the help of every command."""
    from se_flax import cli
    from se_flax.training.config import parse_args

    os.environ['COLUMNS'] = '100'
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        parse_args(['--help'])
    texts = {parser.prog: parser.format_help() for parser in leaves(cli.make_parser())}
    texts['se-flax train'] = out.getvalue()
    return '\n\n'.join(f'## {name}\n\n```text\n{text}```' for name, text in texts.items())


def leaves(parser: argparse.ArgumentParser):
    """Yields the parsers of all commands that have no commands of their own."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for sub in group.choices.values():
            yield from leaves(sub)


def api() -> str:
    """Returns a directive of mkdocstrings for each public name, by module."""
    parts, seen = [], set()
    for module, title in MODULES.items():
        names = public_names(module)
        parts.append(f'## {title}: `{module}`')
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if id(value) not in seen:
                seen.add(id(value))
                parts.append(f'::: {module}.{name}')
    return '\n\n'.join(parts)


def public_names(module: str) -> list[str]:
    """Returns what a package exports (`import x as x`), or what a module defines."""
    loaded = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(loaded))
    if hasattr(loaded, '__path__'):
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        return [alias.name for node in imports for alias in node.names if alias.asname]
    kinds = ast.FunctionDef | ast.ClassDef
    return list(
        dict.fromkeys(n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != '_')
    )


def recipes() -> str:
    """Returns the docstring and the source of each config."""
    parts = []
    for path in sorted((ROOT / 'configs').glob('*.py')):
        tree = ast.parse(source := path.read_text())
        code = '\n'.join(source.splitlines()[tree.body[0].end_lineno :]).strip()
        details = f'??? note "configs/{path.name}"\n\n' + indented(f'```python\n{code}\n```')
        # A continued line of a command is one line in the string, with its indent inside.
        text = re.sub(r' {5,}(?=--)', ' ', ast.get_docstring(tree))
        parts.append(f'## {path.name}\n\n{text}\n\n{details}')
    return '\n\n'.join(parts)


def indented(text: str) -> str:
    """Returns the text as the body of an admonition."""
    return '\n'.join(f'    {line}' if line else '' for line in text.splitlines())


GENERATED = {f.__name__: f for f in (networks, fields, commands, api, recipes)}
