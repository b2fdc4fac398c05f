"""Runs etcd, API server, controllers, scheduler, DNS and registry in one network namespace."""

from __future__ import annotations

import subprocess
from typing import Any

from devcluster.processes import call, inside, launch, wait_for
from devcluster.settings import (
    API_PORT,
    BIN,
    CONTROL_IP,
    INSIDE_KUBECONFIG,
    NETNS,
    PKI,
    REGISTRY,
    REGISTRY_PORT,
    SERVICES,
    STATE,
)

AUDIT_LOG = STATE / "audit.log"
_AUDIT = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


def kubectl(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs kubectl as administrator inside the control plane's network."""
    command = inside(NETNS, str(BIN / "kubectl"), f"--kubeconfig={INSIDE_KUBECONFIG}", *arguments)
    return subprocess.run(command, text=True, capture_output=True, **{"check": True, **options})


def make_network() -> None:
    """Creates the network namespace and its bridge."""
    call("ip", "netns", "add", NETNS)
    for step in (
        ("link", "set", "lo", "up"),
        ("link", "add", "br0", "type", "bridge"),
        ("addr", "add", f"{CONTROL_IP}/24", "dev", "br0"),
        ("link", "set", "br0", "up"),
    ):
        call(*inside(NETNS, "ip", *step))


def _start(name: str, program: str, *flags: str, **environment: str) -> None:
    launch(name, inside(NETNS, str(BIN / program), *flags), **environment)


def start() -> None:
    """Starts all programs, and waits for the API server."""
    _start(
        "etcd",
        "etcd",
        f"--data-dir={STATE}/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",  # its data are deleted with the cluster
        f"--quota-backend-bytes={4 << 30}",
    )
    start_api_server()
    wait_for("the API server", lambda: kubectl("get", "--raw", "/readyz", check=False).returncode == 0)
    _start(
        "controllers",
        "kube-controller-manager",
        f"--kubeconfig={STATE}/controllers.kubeconfig",
        f"--root-ca-file={PKI}/ca.crt",
        f"--service-account-private-key-file={PKI}/service-accounts.key",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
        "--leader-elect=false",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=20s",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    )
    start_scheduler()
    (STATE / "Corefile").write_text(
        f".:53 {{\n bind {CONTROL_IP}\n errors\n cache 1\n"
        " kubernetes cluster.local in-addr.arpa {\n"
        f"  kubeconfig {INSIDE_KUBECONFIG}\n  pods insecure\n  ttl 1\n }}\n}}\n"
    )
    _start("dns", "coredns", "-conf", f"{STATE}/Corefile")
    (STATE / "registry.yml").write_text(
        "version: 0.1\nlog: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {REGISTRY}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{CONTROL_IP}:5000'}}\n"
    )
    _start("registry", "registry", "serve", f"{STATE}/registry.yml", OTEL_TRACES_EXPORTER="none")
    _relay("relay-api", API_PORT, "127.0.0.1:6443")
    _relay("relay-registry", REGISTRY_PORT, f"{CONTROL_IP}:5000")


def start_scheduler() -> None:
    """Starts the scheduler, which ends itself when its cache contradicts the API server."""
    _start(
        "scheduler",
        "kube-scheduler",
        f"--kubeconfig={STATE}/scheduler.kubeconfig",
        "--leader-elect=false",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    )


def start_api_server() -> None:
    """Starts the API server; tests stop and start it."""
    (STATE / "audit.yaml").write_text(_AUDIT)
    _start(
        "apiserver",
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={SERVICES}",
        f"--advertise-address={CONTROL_IP}",
        "--secure-port=6443",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={PKI}/apiserver-to-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={PKI}/service-accounts.pub",
        f"--service-account-signing-key-file={PKI}/service-accounts.key",
        "--enable-aggregator-routing=true",
        "--max-requests-inflight=2000",
        "--max-mutating-requests-inflight=1000",
        "--event-ttl=1h",
        f"--audit-policy-file={STATE}/audit.yaml",
        f"--audit-log-path={AUDIT_LOG}",
    )


def _relay(name: str, port: int, target: str) -> None:
    """Forwards a port of this machine's loopback interface to an address in the namespace."""
    escaped = target.replace(":", r"\:")
    connect = f"EXEC:nsenter --net=/run/netns/{NETNS} socat - TCP\\:{escaped}"
    launch(name, ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", connect])
