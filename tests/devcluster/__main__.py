"""The command line: `python -m devcluster VERB`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import devcluster
from devcluster import binaries, control_plane, images, kueue, nodes, pki, processes, simulated
from devcluster.control_plane import kubectl
from devcluster.processes import call, wait_for
from devcluster.settings import (
    API_PORT,
    BIN,
    IMAGE_PREFIX,
    KUBECONFIG,
    MOST_NODES,
    NETNS,
    REGISTRY,
    REGISTRY_PORT,
    RUN,
    SOCKETS,
    STATE,
    node_netns,
)


def up(count: int, gpu_nodes: int) -> None:
    """Start a cluster of `count` real and `gpu_nodes` simulated nodes."""
    if processes.running("apiserver"):
        sys.exit("devcluster: it is up already; `down` ends it")
    down()  # what a killed cluster has left
    binaries.install_packages()
    binaries.build()
    for folder in (STATE, SOCKETS):
        folder.mkdir(parents=True, exist_ok=True)
    pki.make()
    control_plane.make_network()
    control_plane.start()
    if count:
        ping = ("curl", "-fsS", f"http://127.0.0.1:{REGISTRY_PORT}/v2/")
        wait_for("the registry", lambda: call(*ping, check=False, quiet=True).returncode == 0)
        images.push_pause()
    for i in range(count):
        pki.make_node(i)
        nodes.make_network(i, count)
        nodes.start(i)
    ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
    get_ready = ("get", "nodes", "-o", ready)
    wait_for("the nodes", lambda: kubectl(*get_ready, check=False).stdout.split().count("True") == count)
    if gpu_nodes:
        simulated.start(gpu_nodes)
    account = ("get", "serviceaccount", "default")
    wait_for("the default service account", lambda: kubectl(*account, check=False).returncode == 0)
    print_environment()


def down() -> None:
    """End everything, and remove what it had; the registry's layers stay, for pushing gigabytes again takes long."""
    for i in range(MOST_NODES):
        if Path(f"/run/netns/{node_netns(i)}").exists():
            nodes.pull_the_plug(i)
    for file in sorted(RUN.glob("*.pid")):
        processes.end(file.stem)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    ours = (f"{STATE}/", f"{SOCKETS}/")
    for mount in sorted((m for m in mounts if m.startswith(ours)), reverse=True):
        call("umount", "--lazy", mount, check=False, quiet=True)
    for i in range(MOST_NODES):
        if Path(f"/run/netns/{node_netns(i)}").exists():
            call("ip", "netns", "del", node_netns(i))
            nodes.remove_cgroups(i)
    if Path(f"/run/netns/{NETNS}").exists():
        call("ip", "netns", "del", NETNS)
    for item in STATE.glob("*"):
        if item != REGISTRY:
            shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink()
    shutil.rmtree(SOCKETS, ignore_errors=True)


def print_environment() -> None:
    variables = {
        "KUBECONFIG": KUBECONFIG,
        "REGISTRY": f"127.0.0.1:{REGISTRY_PORT}",
        "IMAGE_PREFIX": IMAGE_PREFIX,
        "PATH": f"{BIN}:$PATH",
    }
    print("export", *(f"{name}={value}" for name, value in variables.items()))


def status() -> None:
    for log in sorted(RUN.glob("*.log")):
        print(f"{log.stem:16} {'up' if processes.running(log.stem) else 'down'}")
    print(f"API server: https://127.0.0.1:{API_PORT}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="devcluster", description=devcluster.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("build", help="install Debian's packages and build the binaries: ten minutes, once per machine")
    verb = verbs.add_parser("up", help="start the cluster: ten seconds")
    verb.add_argument("--nodes", type=int, default=2, help="real nodes")
    verb.add_argument("--gpu-nodes", type=int, default=0, help="simulated nodes of eight GPUs each")
    verbs.add_parser("down", help="end it, and remove what it had")
    verbs.add_parser("env", help="print export lines: KUBECONFIG, REGISTRY, IMAGE_PREFIX, PATH")
    verbs.add_parser("status", help="list the programs")
    verbs.add_parser("logs", help="print a program's log").add_argument("name")
    verbs.add_parser("base", help=f"make {images.BASE}, a stand-in for python:slim")
    verb = verbs.add_parser("image", help="build an image with buildah")
    verb.add_argument("tag")
    verb.add_argument("arguments", nargs=argparse.REMAINDER, help="-- options and folder of `buildah bud`")
    verbs.add_parser("push", help="push an image; prints its name for a pod").add_argument("image")
    verbs.add_parser("kill-node", help="pull a node's plug").add_argument("node", type=int)
    verbs.add_parser("start-node", help="plug it in again").add_argument("node", type=int)
    verb = verbs.add_parser("kueue", help="start or stop a real Kueue in the cluster")
    verb.add_argument("what", choices=("start", "stop"))
    verb = verbs.add_parser("exec", help="run a command in the control plane's network, or a node's")
    verb.add_argument("--node", type=int)
    verb.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    match given.verb:
        case "build":
            binaries.install_packages()
            binaries.build()
        case "up":
            up(given.nodes, given.gpu_nodes)
        case "down":
            down()
        case "env":
            print_environment()
        case "status":
            status()
        case "logs":
            print((RUN / f"{given.name}.log").read_text())
        case "base":
            images.base()
        case "image":
            images.build(given.tag, [a for a in given.arguments if a != "--"])
        case "push":
            print(images.push(given.image))
        case "kill-node":
            nodes.pull_the_plug(given.node)
        case "start-node":
            nodes.start(given.node)
        case "kueue":
            kueue.start() if given.what == "start" else kueue.stop()
        case "exec":
            netns = NETNS if given.node is None else node_netns(given.node)
            command = [a for a in given.command if a != "--"]
            os.execvp("nsenter", processes.inside(netns, *command))


if __name__ == "__main__":
    main()
