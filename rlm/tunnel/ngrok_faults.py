"""Why a tunnel is not up, in one line: what happened and what to do. ngrok's codes are known here.

Nothing an agent says is repeated before its token is taken out: with ERR_NGROK_105 the agent
prints the token itself.
"""

import os
import re
import shutil

TOKEN = (
    "copy yours from https://dashboard.ngrok.com/get-started/your-authtoken, "
    "set it as NGROK_AUTHTOKEN and start again"
)
ACCOUNT = "see https://dashboard.ngrok.com"
AGAIN = "it is tried again by itself"
LASTS = "this does not pass by itself"
SUPPORT = f"ask ngrok's support, or use another account; {LASTS}"
ADDRESS = f"serve from another network or by another tunnel; {LASTS}"
UNKNOWN_TRIES = 5  # so often a fault that nobody here knows is met in a row until it is given up
INSTALL = (
    "install it from https://ngrok.com/download, or let pyngrok fetch it: "
    "python -c 'from pyngrok import ngrok; ngrok.install_ngrok()'"
)
IP_RULES = f"change its rules at https://dashboard.ngrok.com/ip-restrictions; {LASTS}"
# code -> what happened, what to do, whether only the user can mend it
CODES = {
    "4018": ("ngrok was given no token", TOKEN, True),
    "102": ("the account's last payment has failed", f"{ACCOUNT}/billing; {LASTS}", True),
    "103": ("the account has been suspended", SUPPORT, True),
    "205": ("the account has been suspended", SUPPORT, True),
    "338": ("the account has been suspended", SUPPORT, True),
    "8014": ("ngrok has blocked this agent", SUPPORT, True),
    "115": ("the account does not let agents in from this IP address", IP_RULES, True),
    "116": ("the token does not let agents in from this IP address", IP_RULES, True),
    "9040": ("ngrok lets no agent in from this IP address", ADDRESS, True),
    "105": ("ngrok refuses the token: it is no authtoken", TOKEN, True),
    "106": ("ngrok refuses the token: it is of ngrok 1", TOKEN, True),
    "107": ("ngrok refuses the token: it was reset or revoked", TOKEN, True),
    "108": (
        "the account has as many agents running as it may",
        f"stop one at https://dashboard.ngrok.com/agents; {AGAIN}",
        False,
    ),
    "120": ("the ngrok agent is too old", "run: ngrok update", True),
    "121": ("the ngrok agent is too old", "run: ngrok update", True),
    "324": ("the account has as many endpoints online as it may", f"{ACCOUNT}; {AGAIN}", False),
    "334": (
        "the address is already online, from another agent or from one that has just ended",
        f"stop the other one at https://dashboard.ngrok.com/endpoints; {AGAIN}",
        False,
    ),
    "725": ("the account has used up this month's data", f"{ACCOUNT}/billing; {LASTS}", True),
    "727": ("the account has used up this month's requests", f"{ACCOUNT}/billing; {LASTS}", True),
}
DOMAIN_CODES = {"313", "314", "319", "320", "326", "401", "404", "7117", "7118"}
DOMAIN = "use one of https://dashboard.ngrok.com/domains, or none: the account has one of its own"
OFFLINE = r"dial tcp|failed to dial|no such host|network is unreachable|i/o timeout|TLS handshake"


class Fault(Exception):
    """lasting: only the user can mend it, so that trying again soon is of no use.

    unknown: ngrok refuses for a reason that is not known here, so that nobody can say whether it
    lasts.
    """

    def __init__(self, happened: str, advice: str, *, lasting: bool = False, unknown: bool = False):
        super().__init__(f"{happened}: {advice}")
        self.happened, self.lasting, self.unknown = happened, lasting, unknown

    def given_up(self, tries: int) -> "Fault":
        """Return what is told of an unknown fault after so many tries in a row, the last of all."""
        advice = f"it was so {tries} times in a row and is not tried again; start again to try"
        return Fault(self.happened, advice, lasting=True)


def explain(said: str, domain: str | None) -> Fault | None:
    """Return the fault that an agent's own words tell of, None if they tell of none."""
    found = re.search(r"ERR_NGROK_(\d+)", said)
    if not found:
        if re.search(OFFLINE, said):
            happened = "ngrok's servers cannot be reached (offline, or a firewall blocks them)"
            return Fault(happened, f"check the network; {AGAIN}")
        return None
    name, code = found[0], found[1]
    if code in CODES:
        happened, advice, lasting = CODES[code]
    elif code in DOMAIN_CODES or (domain and domain in said):
        happened, advice, lasting = f"ngrok refuses the domain {domain or ''}".strip(), DOMAIN, True
    else:
        happened = f"ngrok refuses: {clean(said)}"
        page = f"see https://ngrok.com/docs/errors/{name.lower()}"
        return Fault(f"{happened} ({name})", f"{page}; {AGAIN}, a few times", unknown=True)
    return Fault(f"{happened} ({name})", advice, lasting=lasting)


def clean(said: str) -> str:
    """Return an agent's words as one short line, without the token."""
    said = re.sub(r"(?i)(authtoken:)\s*\S+?(?=\\|\s|$)", r"\1 ***", said)
    if token := os.environ.get("NGROK_AUTHTOKEN"):
        said = said.replace(token, "***")
    return " ".join(re.sub(r"\\[nr]|[^ -~]", " ", said).split())[:160]


def find_agent(default: str) -> str:
    """Return the path of the ngrok program: PYNGROK_NGROK_PATH, pyngrok's own, or of the PATH.

    default: where pyngrok would install it. Fault if there is none: pyngrok would download one
    without a word, so it must not be asked.
    """
    given = os.environ.get("PYNGROK_NGROK_PATH")
    if given:
        if not os.access(given, os.X_OK) or os.path.isdir(given):
            happened = f"PYNGROK_NGROK_PATH is {given}, which is no program"
            raise Fault(happened, "give the path of ngrok, or unset it", lasting=True)
        return given
    if os.path.exists(default):
        return default
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = shutil.which("ngrok", path=folder) if folder else None
        if found and not _is_wrapper(found):
            return found
    raise Fault("the ngrok program is not installed", INSTALL, lasting=True)


def _is_wrapper(path: str) -> bool:
    """Return whether it is what pyngrok itself installs as `ngrok`: it would download the agent."""
    with open(path, "rb") as file:
        script = file.read(2) == b"#!"
    # On Windows it is a program that lies beside Python.
    return script or os.path.exists(os.path.join(os.path.dirname(path), "python.exe"))
