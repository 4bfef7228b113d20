"""Work that is shared among threads comes back in order, whatever their number."""

import threading
import time

import pytest

from cynosure.ground.threads import share


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 8])
def test_results_are_in_the_order_of_the_pieces(threads):
    def work(k):
        time.sleep(0.002 * (5 - k % 5))  # the later ones would finish first
        return k * k

    assert share(work, range(12), threads) == [k * k for k in range(12)]
    assert share(work, iter([3]), threads) == [9]
    assert share(work, [], threads) == []


def test_one_thread_is_the_caller_and_more_are_not():
    here = threading.get_ident()
    assert set(share(lambda _: threading.get_ident(), range(4), 1)) == {here}
    barrier = threading.Barrier(2, timeout=10)

    def meet(_):
        barrier.wait()  # passes only if two run at a time
        return threading.get_ident()

    assert here not in share(meet, range(2), 2)


def test_an_error_of_a_piece_reaches_the_caller():
    def work(k):
        if k == 3:
            message = "piece 3"
            raise ValueError(message)
        return k

    for threads in (1, 2):
        with pytest.raises(ValueError, match="piece 3"):
            share(work, range(6), threads)
