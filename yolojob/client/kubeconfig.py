"""Selects cluster and namespace: from kubeconfig files as kubectl reads them, or from a pod's service account."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from yolojob.api.errors import ClusterError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def contexts() -> list[str]:
    """Names of the contexts; empty without a kubeconfig."""
    try:
        from kubernetes import config
    except ImportError:
        return []
    try:
        return sorted(_contexts(config, os.environ.get("KUBECONFIG") or None)[0])
    except Exception:  # noqa: BLE001 - the file may have any content
        return []


def configure(configuration: Any, context: str | None) -> str:
    """Load a kubeconfig, or a pod's service account. Returns the namespace that it names.

    Args:
        configuration: kubernetes.client.Configuration to fill in.
        context: context of the kubeconfig. None: its current context.

    Raises:
        ClusterError: there is no kubeconfig, or no such context.
    """
    from kubernetes import config

    # The library reads KUBECONFIG only once, when it is imported.
    file = os.environ.get("KUBECONFIG") or None
    try:
        names, current = _contexts(config, file)
        selected = context or current
        if selected is None or selected not in names:
            existing = ", ".join(sorted(names)) or "none"
            problem = "it names no current context" if selected is None else f"it has no context {selected!r}"
            raise ClusterError(f"kubeconfig: {problem}; its contexts: {existing}. Select one with --context")
        config.load_kube_config(file, context=selected, client_configuration=configuration)
    except ClusterError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries involved raise many kinds
        # The pod's own cluster is used only if neither a context nor a kubeconfig is named.
        if context is None and file is None:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                pass
            else:
                return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.exists() else "default"
        message = str(error) or type(error).__name__
        raise ClusterError(f"no cluster: {message}. Set KUBECONFIG, or create a cluster: docs/install.md") from None
    return str(names[selected].get("namespace") or "default")


def _contexts(config: Any, files: str | None) -> tuple[dict[str, dict[str, Any]], str | None]:
    """(contexts by name, name of the current context) of all kubeconfig files.

    Raises:
        ConfigException: there is no kubeconfig.
    """
    files = files or config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    merged = config.kube_config.KubeConfigMerger(files).config
    if merged is None:
        raise config.ConfigException("there is no kubeconfig")
    entries = [node.value for node in merged.value["contexts"]]
    return {c["name"]: c.get("context") or {} for c in entries}, _current(files)


def _current(files: str) -> str | None:
    """The current context of the first file that names one, as in kubectl; the library takes the last one."""
    for path in files.split(os.pathsep):
        file = Path(path).expanduser()
        content = yaml.safe_load(file.read_text()) if path and file.is_file() else None
        if isinstance(content, dict) and content.get("current-context"):
            return str(content["current-context"])
    return None
