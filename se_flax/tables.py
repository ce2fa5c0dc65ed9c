"""Tables of text, for a terminal and for Markdown; the first row is the head."""

from collections.abc import Sequence


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
