"""Checks a dataset before a training: `yolojob check`."""
