"""No test of the devices leaves anything behind."""

from tests.settled import pytest_pyfunc_call, settled  # noqa: F401
