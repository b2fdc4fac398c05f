"""Runs jobs in a cluster or on this machine, from Python: `Client().submit(job)`."""

from yolojob.api.errors import ClusterError, NotFound
from yolojob.client.client import Change, Client

__all__ = ["Change", "Client", "ClusterError", "NotFound"]
