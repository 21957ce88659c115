"""The archive of the cluster's images matches the directories it is made of."""

import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.cluster.harness.images import Image, write_archive


@pytest.fixture
def root() -> None:
    if os.geteuid():
        pytest.skip("only root can make what overlayfs makes of a removed file")


def members(archive: Path, digest: str) -> list[str]:
    with tarfile.open(archive) as outer:
        blob = outer.extractfile(f"blobs/{digest.replace(':', '/')}")
        with tarfile.open(fileobj=blob) as layer:
            return sorted(layer.getnames())


def read(archive: Path, name: str) -> dict[str, object]:
    with tarfile.open(archive) as outer:
        file = outer.extractfile(name)
        assert file is not None
        return dict(json.load(file))


def manifests(archive: Path) -> dict[str, dict[str, object]]:
    found = {}
    for item in read(archive, "index.json")["manifests"]:  # type: ignore[attr-defined]
        blob = read(archive, f"blobs/{item['digest'].replace(':', '/')}")
        found[item["annotations"]["io.containerd.image.name"]] = blob
    return found


def layers(manifest: dict[str, object]) -> list[str]:
    return [layer["digest"] for layer in manifest["layers"]]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("root")
def test_removed_and_replaced_files_become_whiteouts_of_the_image_format(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "etc/replaced").mkdir(parents=True)
    (layer / "etc/kept").write_text("kept")
    os.mknod(layer / "etc/removed", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(layer / "etc/replaced", "trusted.overlay.opaque", b"y")
    archive = tmp_path / "images.tar"
    write_archive(archive, [Image("one:1", (layer,))])
    (manifest,) = manifests(archive).values()
    assert members(archive, *layers(manifest)) == [
        "etc",
        "etc/.wh.removed",
        "etc/kept",
        "etc/replaced",
        "etc/replaced/.wh..wh..opq",
    ]


def test_images_share_common_layers(tmp_path: Path) -> None:
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    images = [Image(f"{name}:1", (tmp_path / "base", tmp_path / name)) for name in ("one", "two")]
    archive = tmp_path / "images.tar"
    write_archive(archive, images)
    one, two = (layers(manifest) for manifest in manifests(archive).values())
    assert one[0] == two[0]
    assert one[1] != two[1]
    with tarfile.open(archive) as outer:
        names = outer.getnames()
    assert len(names) == len(set(names))


def test_images_leave_out_documents_and_caches(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    for directory in ("usr/share/doc/package", "var/cache/apt", "usr/bin"):
        (layer / directory).mkdir(parents=True)
        (layer / directory / "file").write_text("")
    archive = tmp_path / "images.tar"
    write_archive(archive, [Image("one:1", (layer,))])
    (manifest,) = manifests(archive).values()
    found = members(archive, *layers(manifest))
    assert "usr/bin/file" in found
    assert "usr/share/doc" in found
    assert not [name for name in found if name.startswith(("usr/share/doc/", "var/cache/"))]
