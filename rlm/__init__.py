"""How it is done: formats, answers, generation, learning. The scripts at the root import this."""

import os

# TRL and the hub's client tell the hub of each use, unless this is set before they are imported.
# A value that the user has given stays.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ.get("HF_HUB_DISABLE_TELEMETRY") or "1"
