"""A file of the hub, without the wait for its client's retries where there is no network."""

from pathlib import Path

ANSWERS_WITHIN = 10  # seconds


def hub_file(repository: str, file: str, revision: str | None = None) -> Path:
    """Of the hub's cache, where it is as published; else downloaded with a progress bar.

    OSError (huggingface_hub's LocalEntryNotFoundError) where the hub cannot be reached, OSError or ValueError where it
    does not give the file.
    """
    from huggingface_hub import hf_hub_download

    _ask_once()
    return Path(hf_hub_download(repository, file, revision=revision))


def _ask_once() -> None:
    """The client alone would ask for a file six times, 23 seconds long, before it said that no host is found."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import LocalEntryNotFoundError

    if constants.is_offline_mode():
        return  # the client says so itself
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWERS_WITHIN)
    except Exception as error:
        if not _is_of_network(error):
            raise
        raise LocalEntryNotFoundError(f"{constants.ENDPOINT} cannot be reached: {error}") from error


def _is_of_network(error: Exception) -> bool:
    """httpx's errors of connections: the client comes with one version or another of that library."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
