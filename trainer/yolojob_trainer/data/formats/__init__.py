"""Datasets in other formats than Ultralytics': COCO JSON and Pascal VOC. All of them are untrusted data."""
