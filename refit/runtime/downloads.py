"""Whether a file can be had from the web, before any work begins. Changes no result."""

from collections.abc import Sequence
from urllib.request import urlopen

PATIENCE = 20.0  # seconds for a server to answer


def fault_of(urls: Sequence[str]) -> OSError | None:
    """Why none of `urls` answers; None if one of them does."""
    fault: OSError | None = None
    for url in urls:
        try:
            urlopen(url, timeout=PATIENCE).close()
        except OSError as error:
            fault = fault or error
        else:
            return None
    return fault


def hub_urls(repository: str, files: Sequence[str]) -> list[str]:
    """The addresses of `files` in a repository of the Hugging Face hub, `OWNER/NAME` or `OWNER/NAME@REVISION`."""
    from huggingface_hub import hf_hub_url

    name, _, revision = repository.partition("@")
    return [hf_hub_url(name, file, revision=revision or None) for file in files]


def is_in_hub_cache(repository: str, files: Sequence[str]) -> bool:
    """Whether one of `files` in a repository of the Hugging Face hub was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    return any(isinstance(try_to_load_from_cache(name, file, revision=revision or None), str) for file in files)
