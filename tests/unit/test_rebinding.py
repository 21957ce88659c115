"""Names of repositories that lead to an address inside the network once they were checked: attacks on the fetch stage."""

import shutil
from pathlib import Path

import pytest

from tests.support.fetch_bench import Bench
from tests.support.git_http import GitHttp
from tests.support.rebinding import NAMES, rebinding
from tests.support.repositories import Repository


@pytest.mark.xdist_group("rebinding")
def test_submodules_are_fetched_from_the_addresses_that_were_checked_although_their_names_lead_inside_by_then(
    tmp_path: Path,
) -> None:
    with rebinding(tmp_path / "network") as network:
        inner = Repository("inner", {"inner.txt": "From outside."}, network.server)
        inner.git("update-server-info")
        outer = Repository("outer", {"README.md": "Text.\n"}, network.server)
        by_git, by_ssh, by_http = NAMES
        outer.add_submodule("by-git", f"git://{by_git}/{inner.name}", inner.head())
        outer.add_submodule("by-ssh", network.ssh.url(inner.directory), inner.head())
        outer.add_submodule("by-http", f"http://{by_http}/{inner.name}/.git", inner.head())
        (tmp_path / "bench").mkdir()
        bench = Bench(tmp_path / "bench", GitHttp(network.server.root, network.server))
        git = shutil.which("git")
        assert git
        bench.script("git", network.git_script(git))
        bench.before = network.enter
        (tmp_path / "known_hosts").write_text(network.ssh.known_hosts)
        key = {"ssh_key_file": str(network.ssh.key), "known_hosts_file": str(tmp_path / "known_hosts")}
        access = bench.give_credentials({"git": {f"{by_ssh}:{network.ssh.port}": key}})
        result = bench.run(outer, git=access, allow_private_addresses=False)
        assert network.connections() == []
        assert result["reason"] == "ok", bench.texts()
        for name in ("by-git", "by-ssh", "by-http"):
            assert (bench.tree / name / "inner.txt").read_text() == "From outside."
        # Had git looked a name up, it would have been led inside.
        assert all(network.leads_inside(name) for name in NAMES)
        again = bench.run(outer, git=access, allow_private_addresses=False)
        assert network.connections() == []
        assert (again["reason"], "inside the network" in again["message"]) == ("submodule_failed", True), (
            again
        )
