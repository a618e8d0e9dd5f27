"""Asks whether an installed package has a known vulnerability: make audit

Exit code 0: every package was asked after and has none, or an exception in
.ci/audit_exceptions.txt. 1: there is one, or an exception that no advisory needs any more.
3: the service could not be asked about some packages, so nothing is known of them; this is no
pass, and where it stands in .ci/run it is shown and gone past.

pip-audit asks, and only looks: PyPI's own advisories, then OSV's. Its own "no known
vulnerabilities" is not enough, since it also says that of packages nobody knew.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

HERE = Path(__file__).parent
EXCEPTIONS = HERE / "audit_exceptions.txt"
SERVICES = (["-s", "pypi"], ["-s", "osv"])
SECONDS = 180  # for one service and all packages


def from_a_folder(distribution: Distribution) -> bool:
    """Whether it was installed from a folder, as this project is: no service can know it."""
    return "dir_info" in json.loads(distribution.read_text("direct_url.json") or "{}")


def installed() -> dict[str, str]:
    """Return name -> version of what came from an index, without the build's mark (2.13.0+cpu)."""
    asked = [d for d in distributions() if not from_a_folder(d)]
    found = {d.metadata["Name"]: d.version.partition("+")[0] for d in asked}
    return {name.lower().replace("_", "-"): version for name, version in found.items() if name}


def exceptions(text: str) -> dict[str, str]:
    """Return advisory -> reason of the lines `ADVISORY reason`; ValueError without a reason."""
    found = {}
    for line in text.splitlines():
        advisory, _, reason = line.partition("#")[0].strip().partition(" ")
        if advisory and not reason.strip():
            raise ValueError(f"{EXCEPTIONS.name}: {advisory}: say why it does not matter here")
        if advisory:
            found[advisory] = reason.strip()
    return found


def ask(service: list[str], packages: dict[str, str]) -> dict[str, list[dict]]:
    """Return package -> its advisories, for those that the service knows; {} if it is not there."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "-r", str(pins), *service, "--format=json",
                   "--no-deps", "--disable-pip", "--timeout=5"]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return {}
    if done.returncode not in (0, 1) or "No module named" in done.stderr:
        raise RuntimeError(f"pip-audit does not run: {done.stderr.strip()}")
    try:
        answer = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):  # without an answer it ends with a traceback
        return {}
    return {d["name"]: d["vulns"] for d in answer if "skip_reason" not in d}


def judge(
    packages: dict[str, str], known: dict[str, list[dict]], excepted: dict[str, str]
) -> tuple[int, list[str]]:
    """Return (exit code, lines to print) for what the services know of the packages."""
    lines, open_ = [], 0
    used: set[str] = set()
    for name, advisories in sorted(known.items()):
        for advisory in advisories:
            names = {advisory["id"], *advisory.get("aliases", [])}
            reasons = [excepted[id] for id in sorted(names & set(excepted))]
            used |= names & set(excepted)
            open_ += not reasons
            fixed = ", ".join(advisory.get("fix_versions") or ["no version yet"])
            what = f"excepted: {reasons[0]}" if reasons else f"fixed in {fixed}"
            lines.append(f"{name} {packages[name]}: {advisory['id']}: {what}")
    unknown = sorted(set(packages) - set(known))
    # An exception is only known to be of no use once all have been asked after.
    stale = [] if unknown else sorted(set(excepted) - used)
    lines += [f"{id}: no package has it; take it out of {EXCEPTIONS.name}" for id in stale]
    asked = f"{len(known)} of {len(packages)} packages asked after: {open_} open advisories"
    if unknown:
        some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        lines += [f"COULD NOT ASK about {len(unknown)} packages: {some}",
                  "So nothing is known of them, which is no pass: ask again from a machine that "
                  "reaches the advisories of PyPI or OSV."]  # fmt: skip
    lines.append(f"audit: {asked}")
    return (1 if open_ or stale else 3 if unknown else 0), lines


def main() -> int:
    packages = installed()
    known: dict[str, list[dict]] = {}
    for service in SERVICES:
        rest = {name: version for name, version in packages.items() if name not in known}
        known |= ask(service, rest) if rest else {}
    code, lines = judge(packages, known, exceptions(EXCEPTIONS.read_text(encoding="utf-8")))
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
