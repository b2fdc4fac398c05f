"""Creates keys, certificates and kubeconfigs: one authority, and an identity for every client of the API server."""

from __future__ import annotations

import json
from pathlib import Path

from devcluster.processes import call
from devcluster.settings import (
    API_PORT,
    API_SERVICE_IP,
    CONTROL_IP,
    INSIDE_KUBECONFIG,
    KUBECONFIG,
    PKI,
    STATE,
    node_home,
)

_DAYS = ("-days", "3650")
_NAMES = (
    f"IP:127.0.0.1,IP:{CONTROL_IP},IP:{API_SERVICE_IP},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,"
    "DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
)


def _openssl(*arguments: str) -> None:
    call("openssl", *arguments, quiet=True, cwd=PKI)


def issue(name: str, subject: str, usage: str = "clientAuth", alternatives: str = "") -> None:
    """Creates a key and a certificate for one identity."""
    extensions = [f"extendedKeyUsage={usage}", *([f"subjectAltName={alternatives}"] if alternatives else [])]
    (PKI / f"{name}.ext").write_text("\n".join(extensions) + "\n")
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject)
    _openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    signed = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
    _openssl(*signed, *_DAYS, "-extfile", f"{name}.ext", "-out", f"{name}.crt")


def make() -> None:
    """Creates the authority and the identities of the control plane."""
    PKI.mkdir(parents=True, exist_ok=True)
    authority = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", *_DAYS, "-subj", "/CN=devcluster")
    _openssl(*authority, "-keyout", "ca.key", "-out", "ca.crt")
    _openssl("genrsa", "-out", "service-accounts.key", "2048")
    _openssl("rsa", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub")
    issue("apiserver", "/CN=kube-apiserver", "serverAuth", _NAMES)
    issue("apiserver-to-kubelet", "/O=system:masters/CN=apiserver-to-kubelet")
    issue("admin", "/O=system:masters/CN=admin")
    issue("controllers", "/CN=system:kube-controller-manager")
    issue("scheduler", "/CN=system:kube-scheduler")
    local = "https://127.0.0.1:6443"
    kubeconfig(KUBECONFIG, "admin", f"https://127.0.0.1:{API_PORT}")
    kubeconfig(INSIDE_KUBECONFIG, "admin", local)
    kubeconfig(STATE / "controllers.kubeconfig", "controllers", local)
    kubeconfig(STATE / "scheduler.kubeconfig", "scheduler", local)


def make_node(i: int) -> None:
    """Creates a node's identity and its kubeconfigs."""
    issue(f"node-{i}", f"/O=system:nodes/CN=system:node:node-{i}")
    node_home(i).mkdir(parents=True, exist_ok=True)
    server = f"https://{CONTROL_IP}:6443"
    kubeconfig(node_home(i) / "kubelet.kubeconfig", f"node-{i}", server)
    kubeconfig(node_home(i) / "proxy.kubeconfig", "admin", server)


def kubeconfig(path: Path, identity: str, server: str) -> None:
    """Writes a kubeconfig for one identity, as JSON, which is valid YAML."""
    cluster = {"server": server, "certificate-authority": str(PKI / "ca.crt")}
    user = {"client-certificate": str(PKI / f"{identity}.crt"), "client-key": str(PKI / f"{identity}.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": cluster}],
        "users": [{"name": identity, "user": user}],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": identity}}],
        "current-context": "devcluster",
    }
    path.write_text(json.dumps(content, indent=1))
