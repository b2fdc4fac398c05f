"""Versions, paths, ports and addresses of the cluster."""

from __future__ import annotations

import os
from pathlib import Path

KUBERNETES = "1.35.4"
ETCD = "3.7.3"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolojob" / "devcluster"
"""What takes long to build; shared by all clusters and checkouts of this user."""
BIN = CACHE / f"bin-{KUBERNETES}"
STATE = Path("/var/lib/yolojob-devcluster")
"""State of the cluster; `down` empties it, except for the registry's layers."""
RUN = STATE / "run"
PKI = STATE / "pki"
REGISTRY = STATE / "registry"
SOCKETS = Path("/run/yolojob-devcluster")
"""containerd's sockets: a path under STATE may be longer than a socket's name may be."""

KUBECONFIG = STATE / "kubeconfig"
INSIDE_KUBECONFIG = STATE / "inside.kubeconfig"
"""Kubeconfig of the administrator for use inside the control plane's network."""

NETNS = "ytj-control"
CONTROL_IP = "10.77.0.1"
SERVICES = "10.79.0.0/16"
API_SERVICE_IP = "10.79.0.1"
SIMULATED_PODS = "10.80.0.0/16"
API_PORT = 16443
REGISTRY_PORT = 15000
"""Ports of this machine's loopback interface, forwarded to API server and registry."""
IMAGE_PREFIX = "registry.local:5000"
"""The registry's name in an image reference of a pod."""
MAX_NODES = 32


def node_netns(i: int) -> str:
    return f"ytj-node-{i}"


def node_ip(i: int) -> str:
    return f"10.77.0.{10 + i}"


def pod_cidr(i: int) -> str:
    return f"10.78.{i}.0/24"


def node_home(i: int) -> Path:
    return STATE / f"node-{i}"


def node_socket(i: int) -> Path:
    return SOCKETS / f"{i}.sock"
