"""Each test of faults tells how many it has tried; tests/conftest.py prints the figure."""

import pytest


@pytest.fixture
def tried(record_property):
    """To be called with the name of a fault that was tried; it is survived if the test passes."""
    return lambda fault: record_property("fault", fault)
