"""The cache of answers: exact by generation, bounded by bytes, oldest out first."""

from qgisd.supervisor.cache import Cache

HEADERS = [("Content-Type", "text/xml")]


def test_what_was_put_comes_back_with_an_etag_of_its_body() -> None:
    cache = Cache(1 << 20)
    put = cache.put("a", 1, "key", HEADERS, b"body")
    got = cache.get("a", 1, "key")
    assert got == put
    assert got.body == b"body"
    tags = [value for name, value in got.headers if name == "ETag"]
    assert len(tags) == 1 and tags[0].startswith('"') and tags[0].endswith('"')
    other = cache.put("a", 1, "other", HEADERS, b"another body")
    assert other.headers[-1] != got.headers[-1]


def test_another_project_key_or_generation_is_another_answer() -> None:
    cache = Cache(1 << 20)
    cache.put("a", 1, "key", HEADERS, b"body")
    assert cache.get("b", 1, "key") is None
    assert cache.get("a", 1, "other") is None
    assert cache.get("a", 2, "key") is None


def test_a_newer_generation_replaces_and_an_older_one_does_not() -> None:
    cache = Cache(1 << 20)
    cache.put("a", 1, "key", HEADERS, b"old")
    cache.put("a", 2, "key", HEADERS, b"new")
    cache.put("a", 1, "key", HEADERS, b"late")
    kept = cache.get("a", 2, "key")
    assert kept is not None and kept.body == b"new"


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    cache = Cache(1000)
    for key in "abcdefghij":
        cache.put("p", 1, key, HEADERS, b"x" * 100)
    assert cache.get("p", 1, "a") is not None
    cache.put("p", 1, "k", HEADERS, b"x" * 100)
    assert cache.get("p", 1, "b") is None
    assert cache.get("p", 1, "a") is not None
    assert sum(cache.get("p", 1, key) is not None for key in "abcdefghijk") == 10


def test_what_is_too_large_is_not_kept_but_has_its_etag() -> None:
    cache = Cache(1000)
    put = cache.put("p", 1, "key", HEADERS, b"x" * 500)
    assert put.headers[-1][0] == "ETag"
    assert cache.get("p", 1, "key") is None


def test_putting_again_does_not_count_twice() -> None:
    cache = Cache(1000)
    for _ in range(50):
        cache.put("p", 1, "key", HEADERS, b"x" * 100)
    for key in "abcdefghi":
        cache.put("p", 1, key, HEADERS, b"x" * 100)
    assert cache.get("p", 1, "key") is not None
