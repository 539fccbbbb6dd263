"""Fixtures that the tests of every room share; test_grow.py has them."""

from test_grow import data, grown_run, sp_model, stage  # noqa: F401
