"""Runs real nodes: each is a network namespace with its own containerd, kubelet and kube-proxy."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from devcluster.processes import call, end, inside, launch, wait_for
from devcluster.settings import (
    BIN,
    CONTROL_IP,
    IMAGE_PREFIX,
    NETNS,
    PKI,
    SOCKETS,
    node_home,
    node_ip,
    node_netns,
    node_socket,
    pod_cidr,
)

_CGROUPS = Path("/sys/fs/cgroup")


def make_network(i: int, count: int) -> None:
    """Creates the node's network namespace, connects it to the bridge, and adds routes to the other nodes' pods."""
    netns = node_netns(i)
    call("ip", "netns", "add", netns)
    call(*("ip", "link", "add", f"ytj{i}", "netns", NETNS, "type", "veth", "peer", "name", "eth0", "netns", netns))
    call(*inside(NETNS, "ip", "link", "set", f"ytj{i}", "master", "br0", "up"))
    steps = [
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{node_ip(i)}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", CONTROL_IP),
        *(("route", "add", pod_cidr(j), "via", node_ip(j)) for j in range(count) if j != i),
    ]
    for step in steps:
        call(*inside(netns, "ip", *step))
    call(*inside(netns, "sysctl", "-qw", "net.ipv4.ip_forward=1"))
    call(*inside(NETNS, "ip", "route", "add", pod_cidr(i), "via", node_ip(i)))


def start(i: int) -> None:
    """Starts the node's programs."""
    home, netns = node_home(i), node_netns(i)
    _configure(i, home)
    _make_cgroups(i)
    launch(f"containerd-{i}", inside(netns, "containerd", "--config", f"{home}/containerd.toml"))
    wait_for(f"containerd of node {i}", node_socket(i).exists)
    launch(
        f"kubelet-{i}",
        inside(
            netns,
            str(BIN / "kubelet"),
            f"--config={home}/kubelet.json",
            f"--root-dir={home}/kubelet",
            f"--kubeconfig={home}/kubelet.kubeconfig",
            f"--hostname-override=node-{i}",
            f"--node-ip={node_ip(i)}",
            f"--cert-dir={home}/pki",
        ),
    )
    launch(f"proxy-{i}", inside(netns, str(BIN / "kube-proxy"), f"--config={home}/proxy.json"))


def _configure(i: int, home: Path) -> None:
    mirror = home / "certs.d" / IMAGE_PREFIX
    for folder in (mirror, home / "cni"):
        folder.mkdir(parents=True, exist_ok=True)
    url = f"http://{CONTROL_IP}:5000"
    (mirror / "hosts.toml").write_text(f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n')
    (home / "resolv.conf").write_text(f"nameserver {CONTROL_IP}\n")
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{home}/ipam",
            "ranges": [[{"subnet": pod_cidr(i)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    network = {"cniVersion": "0.4.0", "name": "devcluster", "plugins": [bridge, ports]}
    (home / "cni" / "10-bridge.conflist").write_text(json.dumps(network))
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    (home / "containerd.toml").write_text(
        f"""\
version = 2
root = "{home}/containerd"
state = "{SOCKETS}/{i}"
[grpc]
address = "{node_socket(i)}"
[{cri}]
sandbox_image = "{IMAGE_PREFIX}/pause:1"
restrict_oom_score_adj = true
max_container_log_line_size = -1
[{cri}.registry]
config_path = "{home}/certs.d"
[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{home}/cni"
[{cri}.containerd]
snapshotter = "overlayfs"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
    )
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/ytj-node-{i}",
        "clusterDomain": "cluster.local",
        "clusterDNS": [CONTROL_IP],
        "resolvConf": f"{home}/resolv.conf",
        "containerRuntimeEndpoint": f"unix://{node_socket(i)}",
        "failSwapOn": False,
        "failCgroupV1": False,
        "featureGates": {"KubeletInUserNamespace": True},
        "podLogsDir": f"{home}/pod-logs",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        "volumePluginDir": f"{home}/volume-plugins",
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "10s",
        "shutdownGracePeriod": "0s",
        "serializeImagePulls": False,
    }
    (home / "kubelet.json").write_text(json.dumps(kubelet))
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": f"{home}/proxy.kubeconfig"},
        "hostnameOverride": f"node-{i}",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "metricsBindAddress": "127.0.0.1:10249",
    }
    (home / "proxy.json").write_text(json.dumps(proxy))


def _make_cgroups(i: int) -> None:
    """Creates the cgroups: in version 1 each controller has its own tree, and a new cpuset group has no CPUs yet."""
    for controller in _CGROUPS.iterdir():
        if controller.is_symlink() or not controller.is_dir() or not (controller / "cgroup.procs").exists():
            continue
        group = controller / f"ytj-node-{i}"
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((controller / name).read_text())


def cut_power(i: int) -> None:
    """Kills all programs of a node and of its pods at once, as a power cut does."""
    for name in (f"kubelet-{i}", f"proxy-{i}", f"containerd-{i}"):
        end(name, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while (pids := _pids(i)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    node_socket(i).unlink(missing_ok=True)


def _pids(i: int) -> list[int]:
    """Returns the node's processes: containers by their cgroup, containerd's shims by the socket in their command
    line.
    """
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inside_node = f"/ytj-node-{i}/" in (entry / "cgroup").read_text()
            if inside_node or str(node_socket(i)) in (entry / "cmdline").read_text():
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def remove_cgroups(i: int) -> None:
    """Removes the node's empty cgroups."""
    for group in _CGROUPS.glob(f"*/ytj-node-{i}"):
        for folder in [*sorted((f for f in group.rglob("*") if f.is_dir()), reverse=True), group]:
            try:
                folder.rmdir()
            except OSError:
                continue  # a process in it is still terminating; the next cluster uses the folder again
