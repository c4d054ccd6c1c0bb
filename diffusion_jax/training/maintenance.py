"""Notices of the cloud that this machine is about to be taken away."""

from __future__ import annotations

import os
import signal
import threading
import urllib.request
from pathlib import Path

# https://cloud.google.com/compute/docs/metadata: asked of every Compute Engine and TPU virtual machine alike.
_HOST = "metadata.google.internal"
_NOTICES = {
    "instance/preempted": "TRUE",
    "instance/maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}
_TIMEOUT = 2.0


class MaintenanceWatch:
    """While entered, asks the metadata server every few seconds, and sends SIGUSR1 to this process at a notice.

    Only on Google's machines, or where GCE_METADATA_HOST names a server. A spot TPU has 30 seconds from its notice.
    """

    def __init__(self, seconds: float = 5.0):
        self._seconds = seconds
        self._done = threading.Event()
        self._host = os.environ.get("GCE_METADATA_HOST") or (_HOST if _on_google() else None)

    def __enter__(self) -> MaintenanceWatch:
        if self._host:
            threading.Thread(target=self._watch, name="maintenance", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(self._seconds):
            if any(self._ask(path) == notice for path, notice in _NOTICES.items()):
                os.kill(os.getpid(), signal.SIGUSR1)
                return

    def _ask(self, path: str) -> str | None:
        url = f"http://{self._host}/computeMetadata/v1/{path}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return answer.read().decode("ascii", "replace").strip()
        except OSError:  # a server that is busy says no more than one that has no notice
            return None


def _on_google() -> bool:
    try:
        return "Google" in Path("/sys/class/dmi/id/product_name").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
