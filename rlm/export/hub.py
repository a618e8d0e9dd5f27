"""An exported folder on the Hugging Face hub: what is shown is uploaded, private by default.

    check("me/my-model", public=False)         # before any work: a token, a name, a hub
    push(folder, "me/my-model", public=False)

The token is HF_TOKEN of the environment and no other; none that an earlier login left is read. The
address of the hub is HF_ENDPOINT, or the public one.
"""

import os
import re
from pathlib import Path

from rlm.data.hub import endpoint, offline_switch, reachable
from rlm.errors import InputError, RunError

TOKEN = "HF_TOKEN"
NAME = re.compile(r"([\w.-]+/)?[\w.-]+", re.ASCII)


def check(name: str, *, public: bool) -> None:
    """InputError in one line where a push to `name` cannot work; asks the hub for what is there."""
    given = f"--push-to-hub {name}"
    if not NAME.fullmatch(name):
        raise InputError(f"{given}: no name of the hub; give NAME or OWNER/NAME")
    if not os.environ.get(TOKEN, "").strip():
        raise InputError(f"{given}: no token; put one that may write into {TOKEN} (the hub "
                         "makes it at Settings, Access Tokens)")  # fmt: skip
    if switch := offline_switch():
        raise InputError(f"{given}: {switch} forbids the network; unset it")
    if not reachable():
        raise InputError(f"{given}: the hub at {endpoint()} does not answer; try again later, or "
                         "leave --push-to-hub out")  # fmt: skip
    found = _asked(given, lambda api: _info(api, _full(api, name)))
    if found is not None and not found.private and not public:
        raise InputError(f"{given}: is there and public; use --public, or give another name")


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder by their names in it, in order; nothing hidden, no links."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    names = [path.relative_to(folder) for path in found]
    return [name for name in names if not any(part.startswith(".") for part in name.parts)]


def push(folder: Path, name: str, *, public: bool) -> str:
    """Show the files of `folder`, upload those and no others in one commit; return the address.

    The repository is made where there is none. RunError in one line if the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd

    names = files_of(folder)
    print(f"uploads {len(names)} files of {folder} ({'public' if public else 'private'}):")
    for each in names:
        print(f"  {(folder / each).stat().st_size:>13,}  {each.as_posix()}")

    def upload(api) -> str:
        repository = _full(api, name)
        api.create_repo(repository, private=not public, exist_ok=True)
        added = [
            CommitOperationAdd(path_in_repo=each.as_posix(), path_or_fileobj=folder / each)
            for each in names
        ]
        api.create_commit(repository, added, commit_message=f"Upload {folder.name}")
        return f"{endpoint()}/{repository}"

    return _asked(f"--push-to-hub {name}", upload)


def licence_of(base: str) -> str | None:
    """Return the licence that a model on the hub names; None where none is known."""
    if offline_switch() or not reachable():
        return None
    found = _asked(f"--model {base}", lambda api: _info(api, base))
    card = getattr(found, "card_data", None)
    licence = card.get("license") if card else None
    return licence if isinstance(licence, str) else None


def _full(api, name: str) -> str:
    """Return OWNER/NAME; the owner of the token where none was given."""
    return name if "/" in name else f"{api.whoami()['name']}/{name}"


def _info(api, name: str):
    """Return what the hub knows of a model; None where there is none that the token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(name)
    except RepositoryNotFoundError:
        return None


def _asked(given: str, ask):
    """Return ask(api) with the token of the environment; RunError in one line if it is refused."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = os.environ.get(TOKEN, "").strip() or False
    try:
        return ask(HfApi(endpoint=endpoint(), token=token))
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = " ".join(lines)[:300] or type(error).__name__
        raise RunError(f"{given}: the hub refused ({told})") from error
