"""The canvas of twelve crops."""

import cv2
import numpy as np
import pytest

from se_flax.data.transforms import Squash
from se_flax.errors import UserError


def test_squash_resizes_the_shorter_edge_and_then_the_longer():
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    out = np.empty((21, 21, 3), np.uint8)
    Squash(21)(image, None, out)
    np.testing.assert_array_equal(out, cv2.resize(cv2.resize(image, (35, 21)), (21, 21)))
    Squash(21)(image[:21, :21], None, out)
    np.testing.assert_array_equal(out, image[:21, :21])


def test_mistakes():
    with pytest.raises(UserError, match="unknown interpolation 'bilinar': did you mean bilinear"):
        Squash(21, 'bilinar')
    with pytest.raises(UserError, match='image_size=0 must be at least 1'):
        Squash(0)
