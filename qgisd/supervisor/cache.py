"""Answers that depend on the project alone, kept by generation: a snapshot does not change.

Only what the caller gave a key is kept, and only whole answers with status 200. The key holds all
that an answer may depend on: address, parameters, and every header but a few that say nothing
about the answer (`http/app.py`).
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from qgisd.wire import Headers

#: An answer larger than this share of the cache is not kept.
_LARGEST_SHARE = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer. Its headers include an ETag made of its body."""

    generation: int
    headers: Headers
    body: bytes


class Cache:
    """Least recently used, bounded by bytes. One generation of a project at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self.hits = 0
        self.misses = 0

    @property
    def used(self) -> int:
        """Bytes of the bodies that are kept."""
        return self._used

    @property
    def size(self) -> int:
        """Bytes that may be kept."""
        return self._size

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, project: str, generation: int, key: str) -> Kept | None:
        """The answer that this generation gave to `key`, if it is kept."""
        kept = self._kept.get((project, key))
        if kept is None or kept.generation != generation:
            self.misses += 1
            return None
        self._kept.move_to_end((project, key))
        self.hits += 1
        return kept

    def put(self, project: str, generation: int, key: str, headers: Headers, body: bytes) -> Kept:
        """Keep an answer, and return it with its ETag, kept or not."""
        tag = hashlib.blake2b(body, digest_size=12).hexdigest()
        kept = Kept(generation, [*headers, ("ETag", f'"{tag}"')], body)
        before = self._kept.get((project, key))
        if len(body) * _LARGEST_SHARE > self._size:
            return kept
        if before is not None and before.generation > generation:
            return kept  # a worker of the generation before was the last to answer
        self._remove((project, key))
        self._kept[project, key] = kept
        self._used += len(body)
        while self._used > self._size:
            self._remove(next(iter(self._kept)))
        return kept

    def _remove(self, entry: tuple[str, str]) -> None:
        kept = self._kept.pop(entry, None)
        if kept is not None:
            self._used -= len(kept.body)
