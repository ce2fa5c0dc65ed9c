"""Tables as text for a terminal, Markdown and CSV; the first row is the head."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligns columns: the first `left` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, numbers to the right."""
    head, *body = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([head, f'|---|{"---:|" * (len(rows[0]) - 1)}', *body])


def csv_text(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
