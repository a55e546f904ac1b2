"""Call functions on the workers of a Dask scheduler.

The workers run in the same folder, on a file system that all share, and in the same environment. The variable is Dask's
own, and not a parameter: where the work is done changes no result.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from refit.runtime.errors import UserError
from refit.runtime.fingerprint import code_of

Result = TypeVar("Result")
ADDRESS = "DASK_SCHEDULER_ADDRESS"
_PATIENCE = 30  # seconds, for the scheduler and for its first worker


def has_scheduler() -> bool:
    return bool(os.environ.get(ADDRESS))


def on_workers(
    function: Callable[..., Result], calls: Sequence[Sequence[Any]], stage: str, source: str
) -> Iterator[Result]:
    """function(*call) for each of `calls`, in order, by the workers of the scheduler in DASK_SCHEDULER_ADDRESS.

    `function` can be imported by its name. Raises UserError if no worker can be reached, or if one runs in another
    folder or with other code or packages of `stage`, with data.source = `source`; and as `function`.
    """
    address = os.environ[ADDRESS]
    try:
        from distributed import Client
    except ImportError:
        raise UserError(f"{ADDRESS} is set, and Dask is not installed; run: uv pip install 'distributed', or unset "
                        "it") from None  # fmt: skip
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
        client.wait_for_workers(1, timeout=_PATIENCE)
    except (OSError, ValueError, NoAnswer) as error:
        raise UserError(f"{ADDRESS} = {address!r} has no worker that answers: {error}; start the scheduler and its "
                        "workers, or unset it") from None  # fmt: skip
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"{workers} workers of {address} do the work", flush=True)
        code = code_of(stage, source=source)
        told = (Path.cwd(), code, stage, source)
        waiting = deque(client.submit(_call, function, call, *told, pure=False) for call in calls)
        try:
            while waiting:
                yield waiting.popleft().result()
        finally:
            client.cancel(list(waiting))


def _call(
    function: Callable[..., Result], call: Sequence[Any], folder: Path, code: dict[str, str], stage: str, source: str
) -> Result:
    """Runs in a worker."""
    if folder != Path.cwd():
        raise UserError(f"a Dask worker runs in {Path.cwd()}; start it in {folder}")
    if differing := sorted(name for name, _ in code.items() ^ _loaded(stage, source).items()):
        raise UserError(f"a Dask worker has another version of {differing[0]}; restart the workers in this environment")
    return function(*call)


@cache
def _loaded(stage: str, source: str) -> dict[str, str]:
    """The code as it is when this process loads it. The files may change afterwards, and the process does not."""
    return code_of(stage, source=source)
