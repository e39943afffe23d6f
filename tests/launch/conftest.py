"""Commands that stand for those of a cluster: each notes how it was called, and behaves as its script says."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
BAD_NAMES = (
    "a b",
    "a;b",
    "a$b",
    "a`b`",
    "$(id)",
    "a|b",
    "a&b",
    "a>b",
    "a<b",
    "a'b",
    'a"b',
    "a\\b",
    "a*b",
    "a\nb",
    "",
    "é",
)


class Fakes:
    """A folder first on PATH; `calls` is what was called in it, one line each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "calls"
        (folder / "bin").mkdir()

    def add(self, name: str, script: str = "") -> None:
        """A command that notes its arguments and then runs `script` in bash."""
        file = self.folder / "bin" / name
        file.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "{name} $*" >> "{self.log}"\n{script}\n')
        file.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        """Starts a script of launch/ among these commands, with nothing else in its environment."""
        path = os.pathsep.join([str(self.folder / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
        command = ["bash", str(LAUNCH / script), *arguments]
        environment = {"PATH": path, "HOME": str(self.folder)} | variables
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def refused(self, script: str, *arguments: str, **variables: str) -> str:
        """The one line with which a script ends before anything was called."""
        code, out, err = self.run(script, *arguments, **variables)
        assert (code, out, self.calls) == (2, "", []), (code, out, err, self.calls)
        assert err.startswith("error: ")
        return err


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)
