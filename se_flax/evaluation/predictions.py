"""A file with the predictions for each example."""

import csv
import io
import json
import pathlib

import numpy as np

from se_flax.data import Dataset
from se_flax.errors import check_known
from se_flax.storage import check_writable, write_text


class Predictions:
    """Collects one row per example, in the order of the data set, and writes them all at once.

    `.csv` has the columns `index`, `key`, `label`, `label_name`, then `class_1`, `name_1`,
    `probability_1` and so on to 5; `.jsonl` an object per line, with the classes in a list `top`.
    Undecodable examples have no row; without `labeled`, rows have no label. About 200 bytes of
    memory per example. Raises UserError for another suffix and as `check_writable`.
    """

    def __init__(self, path: pathlib.Path, *, labeled: bool = True):
        check_known('kind of predictions file', path.suffix, ('.csv', '.jsonl'))
        check_writable(path)
        self._path, self._labeled = path, labeled
        self._text = io.StringIO()
        self._csv = csv.writer(self._text, lineterminator='\n') if path.suffix == '.csv' else None

    def add(self, dataset: Dataset, first: int, results: dict[str, np.ndarray]) -> None:
        """Adds the results of `judge` for the batch that starts at example `first`."""
        names = dataset.class_names
        for i in np.flatnonzero(results['mask']).tolist():
            row = {'index': first + i, 'key': dataset.key(first + i)}
            if self._labeled:
                label = int(results['label'][i])
                row |= {'label': label, 'label_name': names[label]}
            best = zip(results['top'][i].tolist(), results['probability'][i], strict=True)
            top = [
                {'class': c, 'name': names[c], 'probability': float(f'{p:.6g}')} for c, p in best
            ]
            if self._csv is None:
                self._text.write(json.dumps(row | {'top': top}) + '\n')
                continue
            row |= {f'{k}_{n}': v for n, one in enumerate(top, 1) for k, v in one.items()}
            if not self._text.tell():
                self._csv.writerow(row)
            self._csv.writerow(row.values())

    def write(self) -> None:
        """Writes the file atomically."""
        write_text(self._path, self._text.getvalue())
