"""Collects nothing without the peers, and counts how the cases ended."""

import collections
import importlib.util

PEERS = ("torch", "diffusers", "peft", "torch_fidelity")
missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []


def pytest_terminal_summary(terminalreporter):
    """How many cases of each kind agreed, and how many were refused by what name."""
    counts = collections.Counter(
        value
        for report in terminalreporter.stats.get("passed", ())
        for name, value in report.user_properties
        if name == "peer"
    )
    for (kind, outcome), count in sorted(counts.items()):
        terminalreporter.write_line(f"{kind}: {outcome}: {count}")
