"""Work on many images at once."""

import os
import sys

import numpy as np
import pytest

from refit.data.parallel import in_parallel


def test_results_come_in_order() -> None:
    assert list(in_parallel(lambda number: number**2, 1000)) == [number**2 for number in range(1000)]


def test_no_work_gives_no_result() -> None:
    assert not list(in_parallel(lambda number: number, 0))


def test_an_error_of_a_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda number: 1 // (number - 40), 1000))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the calls run in threads")
def test_the_calls_run_in_other_processes_that_share_memory_maps(tmp_path: os.PathLike[str]) -> None:
    written = np.lib.format.open_memmap(os.fspath(tmp_path) + "/written.npy", "w+", np.int64, (1000,))

    def write(number: int) -> int:
        written[number] = number
        return os.getpid()

    assert os.getpid() not in set(in_parallel(write, 1000))
    assert written.tolist() == list(range(1000))
