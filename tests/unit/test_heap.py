"""The small holes of a heap are filled: in a process of its own, as what is taken stays taken."""

import subprocess
import sys

SCRIPT = """
import ctypes
from qgisd.worker import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(size) for size in (200, 600, 3000) * 3000]
for block in blocks[::2]:
    libc.free(block)

def holes():
    return sum(count for _, count in heap._holes(libc))

def pages(count):
    return len({libc.malloc(600) >> 12 for _ in range(count)})

before, scattered = holes(), pages(200)
taken = heap.fill_small_holes()
print(before, scattered, taken, holes(), pages(200))
"""


def test_small_holes_are_taken_and_what_follows_lies_close_together() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    before, scattered, taken, after, close = map(int, result.stdout.split())
    assert before > 4000
    assert scattered > 100
    assert taken >= before - 400
    assert after < before // 20
    # 200 blocks of 608 bytes fill 30 pages.
    assert close < 45
