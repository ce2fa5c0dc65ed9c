"""Images made on the fly, for timing and for tests that need no files."""

import dataclasses

import numpy as np

from se_flax.data.dataset import Dataset

SIZE = 64
EXAMPLES = {'train': 4096, 'eval': 512}
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class SyntheticDataset(Dataset):
    """Noisy stripes, 64 x 64; the class is their direction. Example i is always the same."""

    def __len__(self) -> int:
        return EXAMPLES[self.split]

    def read(self, i: int) -> tuple[np.ndarray, int]:
        label = i % CLASSES
        rng = np.random.default_rng((list(EXAMPLES).index(self.split), i))
        angle = np.pi * label / CLASSES
        x = np.linspace(0, 8 * np.pi, SIZE)
        phase = x * np.cos(angle) + x[:, None] * np.sin(angle) + rng.uniform(0, 2 * np.pi)
        stripes = (64 + 63 * np.sin(phase)).astype(np.uint8)
        return stripes[..., None] + rng.integers(128, size=(SIZE, SIZE, 3), dtype=np.uint8), label


def open_synthetic(split: str) -> SyntheticDataset:
    """Opens `synthetic`: 4,096 training and 512 eval images of 10 classes."""
    names = tuple(f'{180 * label // CLASSES} degrees' for label in range(CLASSES))
    return SyntheticDataset('synthetic', split, names)
