"""Builds the programs from source. Go's module proxy serves the sources; no binary is downloaded."""

from __future__ import annotations

import json
import os
import re
import subprocess

from devcluster.processes import call
from devcluster.settings import BIN, CACHE, ETCD, KUBERNETES

DEBIAN = [
    "containerd",
    "runc",
    "containernetworking-plugins",
    "conntrack",
    "iproute2",
    "iptables",
    "nftables",
    "socat",
    "openssl",
    "buildah",
    "debootstrap",
    "curl",
    "prometheus",
    "ca-certificates",
    "gcc",
    "libc6-dev",
]
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
TOOLS = {
    "coredns": "github.com/coredns/coredns@v1.15.0",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
    "registry": "github.com/distribution/distribution/v3/cmd/registry@v3.1.2",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.22.0",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
}
_STATIC = {"CGO_ENABLED": "0"}


def install_packages() -> None:
    """Installs the Debian packages that the cluster needs."""
    install(*DEBIAN)


def install(*packages: str) -> None:
    """Installs the given Debian packages that are missing."""
    if missing := [p for p in packages if not _installed(p)]:
        call("apt-get", "update", "-qq")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        call("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=environment)


def _installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.endswith(" installed")


def build() -> None:
    """Builds the programs that are missing; the first time takes about ten minutes on two cores."""
    BIN.mkdir(parents=True, exist_ok=True)
    if missing := [c for c in COMPONENTS if not (BIN / c).exists()]:
        _build_kubernetes(missing)
    if not (BIN / "etcd").exists():
        _build_etcd()
    for name, package in TOOLS.items():
        if not (BIN / name).exists():
            print("building", name, flush=True)
            flags = ("-trimpath", "-ldflags", "-s -w")
            call("go", "install", *flags, package, cwd=BIN, env={**os.environ, **_STATIC, "GOBIN": str(BIN)})


def _build_kubernetes(components: list[str]) -> None:
    """Builds Kubernetes as a dependency of an empty module.

    Its go.mod replaces the staged modules by folders, which only works in its own repository; so their versions are
    named here.
    """
    module = CACHE / "kubernetes"
    module.mkdir(parents=True, exist_ok=True)
    source = f"k8s.io/kubernetes@v{KUBERNETES}"
    described = subprocess.check_output(["go", "mod", "download", "-json", source], cwd=module, text=True)
    with open(json.loads(described)["GoMod"]) as file:  # noqa: PTH123
        upstream = file.read()
    go = re.search(r"^go (\S+)", upstream, re.MULTILINE)
    assert go is not None
    staged = re.findall(r"^\s*(\S+) => \./staging", upstream, re.MULTILINE)
    version = "v0." + KUBERNETES.partition(".")[2]
    replacements = "".join(f"\t{name} => {name} {version}\n" for name in staged)
    (module / "go.mod").write_text(
        f"module devcluster\n\ngo {go[1]}\n\nrequire k8s.io/kubernetes v{KUBERNETES}\n\nreplace (\n{replacements})\n"
    )
    imports = "".join(f'\t_ "k8s.io/kubernetes/cmd/{c}"\n' for c in COMPONENTS)
    (module / "tools.go").write_text(f"//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
    call("go", "mod", "tidy", cwd=module)
    major, minor, _ = KUBERNETES.split(".")
    stamp = "k8s.io/component-base/version"
    flags = f"-s -w -X {stamp}.gitVersion=v{KUBERNETES} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    for name in components:
        print("building", name, flush=True)
        target = f"k8s.io/kubernetes/cmd/{name}"
        call(
            *("go", "build", "-trimpath", "-ldflags", flags, "-o", str(BIN / name), target),
            cwd=module,
            env={**os.environ, **_STATIC},
        )


def _build_etcd() -> None:
    """Builds etcd as a dependency: `go install` refuses a go.mod with replacements."""
    print("building etcd", flush=True)
    module = CACHE / "etcd"
    module.mkdir(parents=True, exist_ok=True)
    (module / "go.mod").write_text("module devcluster-etcd\n\ngo 1.26\n")
    (module / "tools.go").write_text('//go:build tools\n\npackage tools\n\nimport _ "go.etcd.io/etcd/server/v3"\n')
    call("go", "get", f"go.etcd.io/etcd/server/v3@v{ETCD}", cwd=module)
    call("go", "mod", "tidy", cwd=module)
    flags = ("-trimpath", "-ldflags", "-s -w", "-o", str(BIN / "etcd"))
    call("go", "build", *flags, "go.etcd.io/etcd/server/v3", cwd=module, env={**os.environ, **_STATIC})
