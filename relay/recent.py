"""What is remembered for speed alone: so much of it and no more."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(dict[K, V]):
    """A dict in which `keep` lets what was kept longest ago go, once there is more than `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> None:
        self.pop(key, None)  # so that it is the newest
        self[key] = value
        if len(self) > self._most:
            del self[next(iter(self))]
