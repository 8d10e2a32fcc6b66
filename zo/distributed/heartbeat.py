"""How ranks notice that one of them is gone without a word: each watches the next one's sign of life.

A killed process closes its connections, and whoever waits for it hears of that at once. One that hangs, or
whose machine lost its power, does not. A limit on the time of a step would have to allow for the slowest
step, a checkpoint to a slow disk among them; a sign of life from a thread of its own need not.
"""

import logging
import os
import threading
import time
from datetime import timedelta

from zo.causes import TRY_AGAIN

log = logging.getLogger("zo")

PATIENCE = "ZO_RANK_PATIENCE"
"""Environment variable: seconds without a sign of life after which a rank is lost (default 20)."""


class Heartbeat:
    """Two threads: one gives and looks for signs of life, one minds the time, as the first may be stuck.

    Rank r watches rank r + 1; if that is lost, rank r leaves, and the rest see its connections close.
    """

    def __init__(self, store, rank: int, count: int):
        """``store``: torch.distributed's, in which all have signed."""
        self._store, self._rank, self._next = store.clone(), rank, (rank + 1) % count
        self._patience = float(os.environ.get(PATIENCE, 20))
        self._interval = self._patience / 10
        self._store.set_timeout(timedelta(seconds=self._patience))
        self._heard, self._stopped = time.monotonic(), threading.Event()
        tasks = (self._exchange, self._mind)
        self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]

    @staticmethod
    def sign(store, rank: int, number: int = 0) -> None:
        """Give one sign of life."""
        store.set(f"alive {rank}", str(number))

    def start(self) -> None:
        """Begin; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End: the others may go now. A thread still in the store as Python exits would abort the process."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(self._patience)

    def _exchange(self) -> None:
        number, last = 0, None
        while not self._stopped.wait(self._interval):
            number += 1
            try:
                self.sign(self._store, self._rank, number)
                sign = self._store.get(f"alive {self._next}")
            except RuntimeError:  # the store is out of reach: whoever keeps it is gone, or the run has ended
                return
            if sign != last:
                last, self._heard = sign, time.monotonic()

    def _mind(self) -> None:
        before = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - before > 3 * self._interval:  # this process itself was stopped: begin anew
                self._heard = now
            before = now
            if now - self._heard > self._patience:
                self._leave()

    def _leave(self) -> None:
        """End the process as it is: its main thread waits for the lost rank and can't be woken."""
        text = "rank %d gave no sign of life for %.0f s: another attempt goes on from the last checkpoint"
        log.error(text, self._next, self._patience)
        logging.shutdown()
        os._exit(TRY_AGAIN)
