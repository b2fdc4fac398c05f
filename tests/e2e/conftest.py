"""Fixtures of a real cluster with the operator, installed by its chart from images that are built here.

With KUBECONFIG, the tests use that cluster instead; YOLOJOB_OPERATOR_IMAGE and YOLOJOB_TRAINER_IMAGE then name the
images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import images, settings
from support import ROOT
from support.examples import Pace
from support.kube import Kube, cluster, devcluster
from support.prometheus import Prometheus, running
from support.release import ENFORCE, HOME, Release

STORAGE = settings.STATE / "volumes"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the training jobs first, and then the dashboards, which show what Prometheus has recorded of them."""
    first = ["test_training_jobs.py", "test_dashboards.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    """A new namespace with the Pod Security level `restricted`."""
    with cluster() as admin:
        name = f"e2e-{uuid.uuid4().hex[:8]}"
        admin.run("create", "namespace", name)
        admin.run("label", "namespace", name, f"{ENFORCE}=restricted")
        yield Kube(admin.kubeconfig, name)
        admin.run("delete", "namespace", name)


@pytest.fixture(scope="session")
def prometheus(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """Prometheus in the test cluster's network; none in another cluster."""
    if not kube.is_devcluster:
        yield None
        return
    with running(kube, tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def _build(target: str) -> str:
    """Builds and pushes an image, and returns its name; the tag is its digest, so that no node uses an older image."""
    devcluster("base")
    name = f"localhost/yolojob/{target}"
    devcluster("image", f"{name}:e2e", "--", "--target", target, "--build-arg", f"BASE={images.BASE}", str(ROOT))
    inspect = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", f"{name}:e2e"]
    tag = subprocess.check_output(inspect, text=True).strip()[:12]
    subprocess.run(["buildah", "tag", f"{name}:e2e", f"{name}:{tag}"], check=True)
    return devcluster("push", f"{name}:{tag}", capture=True).strip().splitlines()[-1]


@pytest.fixture(scope="session")
def image_names(kube: Kube) -> dict[str, str]:
    """Images of `operator` and `trainer`, as pods name them."""
    given = {t: os.environ.get(f"YOLOJOB_{t.upper()}_IMAGE") for t in ("operator", "trainer")}
    if all(given.values()):
        return {target: str(image) for target, image in given.items()}
    assert kube.is_devcluster, "on another cluster, YOLOJOB_OPERATOR_IMAGE and YOLOJOB_TRAINER_IMAGE must be set"
    return {target: _build(target) for target in ("operator", "trainer")}


@pytest.fixture(scope="session")
def operator(kube: Kube, image_names: dict[str, str]) -> Iterator[Release]:
    """The operator, installed with Helm."""
    values = []
    for key, image in (("image", image_names["operator"]), ("trainer.image", image_names["trainer"])):
        repository, _, tag = image.rpartition(":")
        values += ["--set", f"{key}.repository={repository}", "--set", f"{key}.tag={tag}"]
    release = Release(kube, tuple(values))
    kube.run("create", "namespace", HOME, check=False)
    kube.run("label", "--overwrite", "namespace", HOME, f"{ENFORCE}=restricted")
    release.install()
    yield release
    release.uninstall()


@pytest.fixture(scope="session")
def pace() -> Pace:
    return Pace()


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the manifests, in which the documented commands run; a training here takes minutes."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    return folder


@pytest.fixture
def volume(kube: Kube, request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of a claim with storage, as given by the test's indirect parameter. Afterwards all jobs are deleted."""
    name: str = request.param
    if kube.is_devcluster:  # the test cluster has no provisioner; other clusters have a default StorageClass
        folder = STORAGE / name
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        kube.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {"namespace": kube.namespace, "name": name},
                    "hostPath": {"path": str(folder)},
                },
            }
        )
    yield name
    kube.run("delete", "yolotrainingjob", "--all")
    kube.run("delete", "pvc", name, "--ignore-not-found")
    if kube.is_devcluster:
        kube.run("delete", "pv", name, "--ignore-not-found")
