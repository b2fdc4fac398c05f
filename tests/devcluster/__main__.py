"""The command line: `python -m devcluster COMMAND`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
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
    MAX_NODES,
    NETNS,
    REGISTRY,
    REGISTRY_PORT,
    RUN,
    SOCKETS,
    STATE,
    node_netns,
)


def up(count: int, gpu_nodes: int) -> None:
    """Starts a cluster of `count` real and `gpu_nodes` simulated nodes."""
    if processes.running("apiserver"):
        sys.exit("devcluster: the cluster is already up; `down` stops it")
    down()  # removes what a killed cluster has left
    build()
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
    """Stops everything and removes its state, except for the registry's layers: pushing gigabytes again takes long."""
    for i in range(MAX_NODES):
        if Path(f"/run/netns/{node_netns(i)}").exists():
            nodes.cut_power(i)
    for file in sorted(RUN.glob("*.pid")):
        processes.end(file.stem)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    ours = (f"{STATE}/", f"{SOCKETS}/")
    for mount in sorted((m for m in mounts if m.startswith(ours)), reverse=True):
        call("umount", "--lazy", mount, check=False, quiet=True)
    for i in range(MAX_NODES):
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
    """Prints a line for the shell's `eval`."""
    variables = {
        "KUBECONFIG": KUBECONFIG,
        "REGISTRY": f"127.0.0.1:{REGISTRY_PORT}",
        "IMAGE_PREFIX": IMAGE_PREFIX,
        "PATH": f"{BIN}:$PATH",
    }
    print("export", *(f"{name}={value}" for name, value in variables.items()))


def build() -> None:
    """Installs Debian's packages and builds the programs."""
    binaries.install_packages()
    binaries.build()


def execute(node: int | None, command: list[str]) -> None:
    """Replaces this process by a command in the network of a node, or of the control plane."""
    netns = NETNS if node is None else node_netns(node)
    os.execvp("nsenter", processes.inside(netns, *command))


def status() -> None:
    """Prints the state of every program."""
    for log in sorted(RUN.glob("*.log")):
        print(f"{log.stem:16} {'up' if processes.running(log.stem) else 'down'}")
    print(f"API server: https://127.0.0.1:{API_PORT}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devcluster", description=devcluster.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    commands.add_parser("build", help="install Debian's packages and build the binaries: ten minutes, once per machine")
    command = commands.add_parser("up", help="start the cluster: ten seconds")
    command.add_argument("--nodes", type=int, default=2, help="real nodes")
    command.add_argument("--gpu-nodes", type=int, default=0, help="simulated nodes of eight GPUs each")
    commands.add_parser("down", help="stop the cluster and remove its state")
    commands.add_parser("env", help="print export lines: KUBECONFIG, REGISTRY, IMAGE_PREFIX, PATH")
    commands.add_parser("status", help="show which programs run")
    commands.add_parser("logs", help="print a program's log").add_argument("name")
    commands.add_parser("base", help=f"make {images.BASE}, a stand-in for python:slim")
    command = commands.add_parser("image", help="build an image with buildah")
    command.add_argument("tag")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="-- options and folder of `buildah bud`")
    commands.add_parser("push", help="push an image, and print its name for a pod").add_argument("image")
    commands.add_parser("kill-node", help="cut a node's power").add_argument("node", type=int)
    commands.add_parser("start-node", help="start the node again").add_argument("node", type=int)
    command = commands.add_parser("kueue", help="start or stop Kueue in the cluster")
    command.add_argument("what", choices=("start", "stop"))
    command = commands.add_parser("exec", help="run a command in the control plane's network, or a node's")
    command.add_argument("--node", type=int)
    command.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def main() -> None:
    """Runs one command."""
    given = _parser().parse_args()
    actions: dict[str, Callable[[], None]] = {
        "build": build,
        "up": lambda: up(given.nodes, given.gpu_nodes),
        "down": down,
        "env": print_environment,
        "status": status,
        "logs": lambda: print((RUN / f"{given.name}.log").read_text()),
        "base": images.base,
        "image": lambda: images.build(given.tag, [a for a in given.arguments if a != "--"]),
        "push": lambda: print(images.push(given.image)),
        "kill-node": lambda: nodes.cut_power(given.node),
        "start-node": lambda: nodes.start(given.node),
        "kueue": lambda: kueue.start() if given.what == "start" else kueue.stop(),
        "exec": lambda: execute(given.node, [a for a in given.command if a != "--"]),
    }
    actions[given.command_name]()


if __name__ == "__main__":
    main()
