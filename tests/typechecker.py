"""The run-time check of signatures, for conftest.py's import hook."""

from beartype import BeartypeConf, beartype

# As in PEP 484, an int may be given where a float is expected.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
