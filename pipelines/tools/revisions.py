"""Read the files of a revision: of an experiment, a commit, a branch or a tag, or of this workspace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from refit.runtime.errors import UserError

HERE = "workspace"


@contextmanager
def reading(revision: str, what: str) -> Iterator[None]:
    """Raises UserError if the block fails because there is no such revision, or because it has no `what`, such as test
    results."""
    try:
        yield
    except SCMError:
        raise UserError(
            f"{revision} is not an experiment, commit, branch or tag; to list the experiments: dvc exp list"
        ) from None
    except (OSError, DvcException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{revision} has no {what} ({reason}); to compute them: dvc repro, to download them: dvc pull"
        ) from None


def reader(revision: str) -> Callable[[Path], bytes]:
    """A function that reads a file of the revision, from git or from DVC's cache or remote."""
    if revision == HERE:
        return Path.read_bytes
    files = DVCFileSystem(rev=revision)

    def read(file: Path) -> bytes:
        content: bytes = files.read_bytes(str(file))
        return content

    return read
