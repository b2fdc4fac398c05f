"""Runs Kueue: its manager as a process in the control plane's network, with plain pods as its only integration.

Its webhooks are registered by address. The build takes three minutes, once per machine; the manager, the CRDs and the
manifest of the webhooks are kept.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from devcluster.control_plane import kubectl
from devcluster.processes import call, end, inside, launch, running, wait_for
from devcluster.settings import CACHE, INSIDE_KUBECONFIG, NETNS, STATE

VERSION = "0.15.0"
MODULE = "sigs.k8s.io/kueue"
HOME = CACHE / f"kueue-{VERSION}"
MANAGER, CRDS, WEBHOOKS = HOME / "kueue", HOME / "crds", HOME / "webhooks.yaml"
OVERLAY = STATE / "kueue"
CERTS = OVERLAY / "etc" / "kueue" / "metrics" / "certs"
"""The manager reads /etc/kueue/metrics/certs: OVERLAY/etc is mounted over its /etc. The webhooks use the same
certificates.
"""
WEBHOOK_PORT, HEALTH_PORT = 19443, 18081
WEBHOOK_NAMES = {"pod", "workload", "clusterqueue", "cohort", "resourceflavor"}
"""Names of the webhooks to register: those in its manifest, without the first letter and `.kb.io`."""
CONVERTED = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")
"""CRDs with two versions that need conversion."""

Object = dict[str, Any]


def build() -> None:
    """Builds the manager and copies its manifests, unless they exist."""
    if all(path.exists() for path in (MANAGER, CRDS, WEBHOOKS)):
        return
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "go.mod").write_text(f"module devcluster-kueue\n\ngo 1.25.0\n\nrequire {MODULE} v{VERSION}\n")
    print("devcluster: building kueue", flush=True)
    subprocess.run(["go", "build", "-mod=mod", "-o", str(MANAGER), f"{MODULE}/cmd/kueue"], cwd=HOME, check=True)
    listed = subprocess.check_output(["go", "mod", "download", "-json", f"{MODULE}@v{VERSION}"], cwd=HOME, text=True)
    components = Path(json.loads(listed)["Dir"]) / "config" / "components"
    shutil.rmtree(CRDS, ignore_errors=True)
    CRDS.mkdir()
    for file in (components / "crd" / "bases").glob("*.yaml"):
        (CRDS / file.name).write_bytes(file.read_bytes())
    WEBHOOKS.write_bytes((components / "webhook" / "manifests.yaml").read_bytes())


def start() -> None:
    """Starts Kueue; does nothing if it runs."""
    build()
    authority = _make_certificates()
    _apply_crds(authority)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kueue-system"}}
    kubectl("apply", "-f", "-", input=json.dumps(namespace))
    (OVERLAY / "config.json").write_text(json.dumps(_configuration()))
    if running("kueue") is None:
        overlay = f"mount -t overlay -o lowerdir={OVERLAY}/etc:/etc kueue-etc /etc"
        manager = f"exec {MANAGER} --config={OVERLAY}/config.json --kubeconfig={INSIDE_KUBECONFIG}"
        launch("kueue", inside(NETNS, "unshare", "--mount", "sh", "-ec", f"{overlay}\n{manager}"))
    healthy = inside(NETNS, "curl", "-fsS", "--max-time", "2", f"http://127.0.0.1:{HEALTH_PORT}/readyz")
    wait_for("kueue", lambda: call(*healthy, check=False, quiet=True).returncode == 0)
    content = {"apiVersion": "v1", "kind": "List", "items": _webhook_configurations(authority)}
    kubectl("apply", "-f", "-", input=json.dumps(content))
    wait_for("kueue's webhooks", _gates_pods)


def stop() -> None:
    """Stops Kueue and removes its webhooks, so that pods are created without it."""
    for kind in ("mutating", "validating"):
        name = f"kueue-{kind}-webhook-configuration"
        kubectl("delete", f"{kind}webhookconfiguration", name, "--ignore-not-found", check=False)
    end("kueue")


def _make_certificates() -> str:
    """Creates a certificate authority and a certificate for 127.0.0.1, and returns the authority's certificate in
    base64.
    """
    CERTS.mkdir(parents=True, exist_ok=True)
    if not (CERTS / "tls.crt").exists():
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj")
        names = ("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "tls.key", "-out", "tls.crt")
        for command in (
            (*new, "/CN=kueue-ca", "-keyout", "ca.key", "-out", "ca.crt"),
            (*new, "/CN=kueue", *names, *signed),
        ):
            subprocess.run(command, cwd=CERTS, check=True, capture_output=True)
    return base64.b64encode((CERTS / "ca.crt").read_bytes()).decode()


def _address(path: str, authority: str) -> Object:
    return {"url": f"https://127.0.0.1:{WEBHOOK_PORT}{path}", "caBundle": authority}


def _apply_crds(authority: str) -> None:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    webhook = {"conversionReviewVersions": ["v1"], "clientConfig": _address("/convert", authority)}
    patch = json.dumps({"spec": {"conversion": {"strategy": "Webhook", "webhook": webhook}}})
    kubectl("patch", "crd", *(f"{kind}.kueue.x-k8s.io" for kind in CONVERTED), "--type=merge", "-p", patch)
    # The command fails, rather than waits, while the API server has not yet written a definition's conditions.
    established = ("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
    wait_for("kueue's kinds", lambda: kubectl(*established, check=False).returncode == 0)


def _configuration() -> Object:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{HEALTH_PORT}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": WEBHOOK_PORT, "certDir": str(CERTS)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 500, "burst": 1000},
        "featureGates": {"VisibilityOnDemand": False},
        "integrations": {"frameworks": ["pod"]},
    }


def _webhook_configurations(authority: str) -> list[Object]:
    """Returns the webhook configurations of its manifest, limited to WEBHOOK_NAMES, with an address instead of a
    service.
    """
    printed = kubectl("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", str(WEBHOOKS)).stdout
    configurations: list[Object] = []
    decoder = json.JSONDecoder()
    while printed := printed.strip():
        item, length = decoder.raw_decode(printed)
        configurations += item.get("items", [item])
        printed = printed[length:]
    for configuration in configurations:
        configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
        wanted = [w for w in configuration["webhooks"] if w["name"][1:].removesuffix(".kb.io") in WEBHOOK_NAMES]
        for webhook in wanted:
            webhook["clientConfig"] = _address(webhook["clientConfig"]["service"]["path"], authority)
        configuration["webhooks"] = wanted
    return configurations


def _gates_pods() -> bool:
    """Returns whether the webhooks respond: a dry-run pod of a queue gets a scheduling gate."""
    metadata = {"name": "kueue-probe", "namespace": "default", "labels": {"kueue.x-k8s.io/queue-name": "none"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "c", "image": "none"}]},
    }
    gates = "jsonpath={.spec.schedulingGates[*].name}"
    created = kubectl("create", "--dry-run=server", "-o", gates, "-f", "-", input=json.dumps(pod), check=False)
    return "kueue.x-k8s.io/admission" in created.stdout
