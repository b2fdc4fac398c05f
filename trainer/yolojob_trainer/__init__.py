"""Runs in a worker: trains an Ultralytics detector together with other workers, and accounts for the time.

This package does not use Kubernetes.
"""
