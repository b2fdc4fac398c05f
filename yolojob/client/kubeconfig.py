"""Which cluster, and which namespace: kubeconfig files as kubectl reads them, or a pod's own identity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from yolojob.api.errors import ClusterError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def contexts() -> list[str]:
    """Names of the contexts; none where there is no kubeconfig."""
    try:
        from kubernetes import config
    except ImportError:
        return []
    try:
        return sorted(_contexts(config, os.environ.get("KUBECONFIG") or None)[0])
    except Exception:  # noqa: BLE001 - a file of whatever kind
        return []


def configure(configuration: Any, context: str | None) -> str:
    """Load a kubeconfig, or a pod's own identity; the namespace that it names.

    Args:
        configuration: kubernetes.client.Configuration, filled in.
        context: the current one unless given.

    Raises:
        ClusterError: there is none, or no such context.
    """
    from kubernetes import config

    # As it is now: the library has read it when it was imported.
    file = os.environ.get("KUBECONFIG") or None
    try:
        names, current = _contexts(config, file)
        wanted = context or current
        if wanted is None or wanted not in names:
            there = ", ".join(sorted(names)) or "none"
            which = "it names no current context" if wanted is None else f"no context {wanted!r} in it"
            raise ClusterError(f"kubeconfig: {which}; there is {there}. Choose one with --context")
        config.load_kube_config(file, context=wanted, client_configuration=configuration)
    except ClusterError:
        raise
    except Exception as error:  # noqa: BLE001 - of the libraries that read it, each has its own
        # A pod's own cluster is meant only where nobody names another.
        if context is None and file is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                pass
            else:
                return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else "default"
        words = str(error) or type(error).__name__
        raise ClusterError(f"no cluster: {words}. Set KUBECONFIG, or make a cluster: docs/install.md") from None
    return str(names[wanted].get("namespace") or "default")


def _contexts(config: Any, files: str | None) -> tuple[dict[str, dict[str, Any]], str | None]:
    """(contexts by name, name of the current one) of the kubeconfig's files together.

    Raises:
        ConfigException: there is none.
    """
    files = files or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    merged = config.kube_config.KubeConfigMerger(files).config
    if merged is None:
        raise config.ConfigException("there is no kubeconfig")
    found = [node.value for node in merged.value["contexts"]]
    return {c["name"]: c.get("context") or {} for c in found}, _current(files)


def _current(files: str) -> str | None:
    """The first file that names a current context counts, as for kubectl; the library lets the last one win."""
    for path in files.split(os.pathsep):
        file = Path(path).expanduser()
        content = yaml.safe_load(file.read_text()) if path and file.is_file() else None
        if isinstance(content, dict) and content.get("current-context"):
            return str(content["current-context"])
    return None
