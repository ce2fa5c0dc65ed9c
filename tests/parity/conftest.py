"""Collects nothing here where the `torch` extra is not installed."""

import importlib.util

PACKAGES = ('torch', 'torchvision', 'timm', 'pytorchcv')
if any(importlib.util.find_spec(name) is None for name in PACKAGES):
    collect_ignore_glob = ['*.py']  # compare.py as well, in which pytest looks for doctests
