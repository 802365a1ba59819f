"""Every fuzzer here tries as hard as `tests.support.effort` says."""

from tests.support import effort

effort.set_up()
