"""A copy of launch/ on a machine whose commands are stand-ins."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


class Machine:
    """`folder`/clone with launch/, and `folder`/tools in front of everything else in PATH."""

    def __init__(self, folder: Path):
        self.clone, self.tools = folder / "the clone", folder / "tools"
        (self.clone / "launch").mkdir(parents=True)
        self.tools.mkdir()
        for file in (REPO / "launch").iterdir():
            self.add(self.clone / "launch" / file.name, file.read_text())
        self.environment = {
            "PATH": f"{self.tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "BACKOFF_SECONDS": "0",
        }

    def add(self, path: Path, text: str) -> None:
        """An executable file; without a first line of its own it is a bash script."""
        path.write_text(text if text.startswith("#") else f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def tool(self, name: str, text: str) -> None:
        self.add(self.tools / name, text)

    def local_sh(self, text: str) -> None:
        """What stands in for the run."""
        self.add(self.clone / "launch/local.sh", text)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.clone / "launch" / script), *arguments],
            cwd=self.clone,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch(self, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)"""
        process = self.start(script, *arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors
