"""Files with credentials for git, as git itself takes them."""

import subprocess
from pathlib import Path

from rabbit2docker.consumer.credentials import HostCredential, Login
from rabbit2docker.consumer.git_files import git_files, write_files


def test_git_takes_the_login_of_an_account_for_whole_names_alone(tmp_path: Path) -> None:
    entries = [
        HostCredential("git.example", None, None, "refused"),
        HostCredential("git.example", Login("x", "of-acme"), None, "acme"),
        HostCredential("git.example", Login("x", "of-the-host"), None),
    ]
    found = git_files(entries, tmp_path / "files")
    assert found
    write_files(tmp_path / "files", found.files)
    options = [part for name, value in found.config for part in ("-c", f"{name}={value}")]

    def asked(url: str) -> str:
        command = ["git", "-c", "credential.helper=", *options, "credential", "fill"]
        environment = {"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0", "HOME": str(tmp_path)}
        answer = subprocess.run(
            command, input=f"url={url}\n\n", env=environment, capture_output=True, text=True, check=False
        )
        return answer.stdout.partition("password=")[2].strip()

    assert {path: asked(f"https://git.example/{path}") for path in (
        "acme/one", "acme/one.git/info/lfs", "acme-data/one", "acm/one", "other/acme/one", "refused/one", "refused-too/one"
    )} == {
        "acme/one": "of-acme",
        "acme/one.git/info/lfs": "of-acme",
        "acme-data/one": "of-the-host",
        "acm/one": "of-the-host",
        "other/acme/one": "of-the-host",
        "refused/one": "",
        "refused-too/one": "of-the-host",
    }  # fmt: skip
    assert asked("https://git.example:8443/acme/one") == ""
