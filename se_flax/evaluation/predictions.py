"""What was said of each example, as a file."""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from se_flax.data import Dataset
from se_flax.errors import check_known
from se_flax.storage import atomic_write, check_writable

FORMATS = ('.csv', '.jsonl')


class Predictions:
    """Collects a row an example and writes them at once, in the order of the data set.

    `.csv` has a header and the columns `index`, `key`, `label`, `label_name`, then `class_1`,
    `name_1`, `probability_1` and so on to 5; `.jsonl` has an object a line, with the classes as a
    list `top`. Examples that cannot be decoded have no row. The text is held until `write`: about
    200 bytes an example.

    Raises UserError for another suffix, and as `check_writable` does, before anything is predicted.

    Args:
        path: of the file.
        labelled: whether the labels are known, else the rows have none.
    """

    def __init__(self, path: pathlib.Path, *, labelled: bool = True):
        check_known('kind of predictions file', path.suffix, FORMATS)
        check_writable(path)
        self._path, self._labelled = path, labelled
        self._text = io.StringIO()
        self._csv = csv.writer(self._text, lineterminator='\n') if path.suffix == '.csv' else None

    def add(self, dataset: Dataset, first: int, results: dict[str, np.ndarray]) -> None:
        """Adds `make_judge`'s results of the batch whose first example has the index `first`."""
        for row in self._rows(dataset, first, results):
            top = row.pop('top')
            if self._csv is None:
                self._text.write(json.dumps(row | {'top': top}) + '\n')
                continue
            flat = row | {f'{k}_{i}': v for i, one in enumerate(top, 1) for k, v in one.items()}
            if not self._text.tell():
                self._csv.writerow(flat)
            self._csv.writerow(flat.values())

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        atomic_write(self._path, self._text.getvalue().encode())

    def _rows(
        self, dataset: Dataset, first: int, results: dict[str, np.ndarray]
    ) -> Iterator[dict[str, Any]]:
        names = dataset.class_names
        for row in np.flatnonzero(results['mask']):
            label = int(results['label'][row])
            truth = {'label': label, 'label_name': names[label]} if self._labelled else {}
            best = zip(results['top'][row].tolist(), results['probability'][row], strict=True)
            yield {
                'index': first + int(row),
                'key': dataset.key(first + int(row)),
                **truth,
                'top': [
                    {'class': i, 'name': names[i], 'probability': float(f'{p:.6g}')}
                    for i, p in best
                ],
            }
