"""Dask clusters: an address -> a client with workers, or one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sciJEPA.errors import UserError
from sciJEPA.storage.sources import EXTRA


@contextmanager
def connected(scheduler: Any) -> Iterator[Any]:
    """A client of the cluster at this address; a client that is one already stays open.

    Raises
    ------
    UserError
        If nobody answers, or there are no workers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(f"a cluster needs distributed, which is not installed: {EXTRA}.") from error
    if isinstance(scheduler, Client):
        yield _with_workers(scheduler)
        return
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(
            f"no cluster answers at {scheduler} ({reason}); start one with 'dask scheduler' and 'dask worker', or "
            "leave --scheduler out."
        ) from error
    with client:
        yield _with_workers(client)


def workers_of(client: Any) -> int:
    """How many workers there are."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _with_workers(client: Any) -> Any:
    address = client.scheduler.address
    if not workers_of(client):
        raise UserError(f"the cluster at {address} has no workers; start some with 'dask worker {address}'.")
    return client
