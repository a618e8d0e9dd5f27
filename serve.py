"""Serve the model: POST /phase1/reasoning, the chat completions API, and a page to try it.

    python serve.py                                   # weights/final_rlm_lora on its base
    python serve.py --port 9000 --adapter none
    python serve.py --adapter weights/tools/final_rlm_lora    # runs the tools it was trained with
    NGROK_AUTHTOKEN=... python serve.py --tunnel      # a public URL; a key is made if none is given
    python serve.py --upstream http://gpu-1:8000 http://gpu-2:8000 --upstream-model rlm

Exit codes: 0 after a signal, 1 if the engine died, 2 for wrong input (a port that is taken too),
3 if --require-tunnel found none.
"""

import asyncio
import logging
import os
import shlex
import sys
import threading
from functools import partial
from pathlib import Path

import config
from rlm.errors import InputError, run_main
from rlm.server.keys import Key, find_or_make_key, matches

EXAMPLE = '{"prompt": "Calculate 23 + 15 + 8"}'
TUNNEL_SECONDS = 30.0  # --require-tunnel waits so long
NO_TUNNEL = 3

logger = logging.getLogger("rlm.server")


def load(settings):
    """Return the service: an engine or other servers, checked, behind a queue."""
    from rlm.answers import formats
    from rlm.server.service import Service

    tools = settings.toolbox()
    worker, tokenizer, name = (upstream if settings.upstream else own_engine)(settings)
    context_tokens, results = worker.context_tokens, 0
    if tools:
        results = room_for(tools, settings, tokenizer, context_tokens)
        logger.info("tools: %s", ", ".join(tool.name for tool in tools.tools))
    most = context_tokens - results if context_tokens else settings.max_tokens
    return Service(
        worker=worker,
        tokenizer=tokenizer,
        format=formats.get_format(settings.format),
        model=name,
        max_tokens=min(settings.max_tokens, most),
        timeout_seconds=settings.timeout,
        reasoning_fields=settings.reasoning_fields,
        log_content=settings.log_content,
        shots=worked_examples(settings, tokenizer, most if context_tokens else None, tools),
        role=settings.role,
        kind=settings.answers or "number",
        tools=tools,
    )


def room_for(tools, settings, tokenizer, context_tokens: int | None) -> int:
    """Return the tokens that the results of tools may have; InputError if they leave no room."""
    results = tools.bound(tokenizer).room
    if context_tokens and results >= context_tokens:
        given = settings.given("tools" if settings.tools else "tool_file")
        raise InputError(
            f"{given}: the results of --max-tool-calls {settings.max_tool_calls} and one more may "
            f"take {results} tokens, and the model's context has {context_tokens}; use fewer "
            "calls, or a smaller --tool-tokens"
        )
    return results


def worked_examples(settings, tokenizer, room: int | None, tools=None) -> list:
    """Return the first --shots of the adapter's worked examples; a server has no other ones.

    InputError if there are fewer, or if they leave no room for a reply. room: the context's tokens
    without those for the results of tools, None for no limit.
    """
    from rlm.models.lookup import adapter_shots
    from rlm.models.prompts import make_prompt

    known = adapter_shots(settings.adapter) if settings.adapter else []
    shots, given = known[: settings.shots], settings.given("shots")
    if len(shots) < settings.shots:
        owner = settings.adapter or "a base"
        raise InputError(
            f"{given}: a server's worked examples are those of its adapter, and {owner} has "
            f"{len(known)}; use --shots {len(known)}, or train an adapter with them"
        )
    asked = partial(make_prompt, role=settings.role, tools=tools)
    tokens = len(asked("?", tokenizer, settings.format, shots).ids) if shots else 0
    if room and tokens >= room:
        left = " left beside the results of tools" if tools else ""
        raise InputError(
            f"{given}: they take {tokens} tokens, and the model's context has {room}{left}; use "
            "fewer"
        )
    return shots


def own_engine(settings) -> tuple:
    """Return (worker, tokenizer, name): the model with its adapter, checked, in an engine."""
    from rlm.engine.engine import Engine
    from rlm.export.at_load import merged_at_load
    from rlm.models.loading import check_finite
    from rlm.models.policy import open_policy
    from rlm.server.worker import Worker

    opened = partial(open_policy, settings.model, settings.adapter, **settings.loading())
    policy = opened()
    check_finite(policy.model)
    if not settings.unmerged:
        policy = merged_at_load(policy, settings.format, opened)
    limits = {"admissions": 2} | settings.engine_options()
    engine = Engine(policy.model, policy.tokenizer, **limits)
    name = Path(settings.adapter or settings.model).name
    return Worker(engine, max_queue=settings.max_queue), policy.tokenizer, name


def upstream(settings) -> tuple:
    """Return (worker, tokenizer, name): running `vllm serve`, looked at, and no model here."""
    from rlm.addresses import UPSTREAM_KEY, read_key
    from rlm.models.loading import load_tokenizer
    from rlm.models.prompts import end_ids, token_ids
    from rlm.models.templates import set_template
    from rlm.server.pool import Pool, look_at
    from rlm.server.upstream import PROBE
    from rlm.server.upstream_worker import UpstreamWorker

    key, urls = read_key(UPSTREAM_KEY), settings.upstream_urls
    tokenizer, generation_config = load_tokenizer(settings.model)
    set_template(tokenizer, **settings.template())
    probe = token_ids(tokenizer, PROBE)
    served, absent = asyncio.run(look_at(urls, key, settings.upstream_model, probe))
    more = {"served": served, "absent": absent, "room": settings.max_rows, "probe_ids": probe}
    pool, stops = Pool(urls, key, **more), frozenset(end_ids(tokenizer, generation_config))
    worker = UpstreamWorker(pool, tokenizer, stop_ids=stops, max_queue=settings.max_queue)
    return worker, tokenizer, Path(served.model).name


def curl(url: str, key: Key | None) -> str:
    """Return a call that can be pasted; the key is named by its place, not shown."""
    header = ""
    if key:
        found = (
            f"${key.place}" if key.place == "RLM_API_KEY" else f"$(cat {shlex.quote(key.place)})"
        )
        header = f' -H "Authorization: Bearer {found}"'
    return f"curl -N {url}/phase1/reasoning{header} -d '{EXAMPLE}'"


def say(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.ServeSettings, argv)
    key = find_or_make_key(
        settings.api_key_file, needed=settings.public, default_path=Path("runs/api_key")
    )
    from rlm.server.run import bind

    with bind(settings.host, settings.port) as sock:
        return serve(settings, key, sock)


def serve(settings, key: Key | None, sock) -> int:
    """Load the model and serve it on the socket; return the exit code."""
    from rlm.run.folder import start
    from rlm.server.app import make_app
    from rlm.server.run import Server

    models = [] if settings.upstream else [settings.model]
    start(*models, seed=0, **settings.process())
    service = load(settings)
    app = make_app(
        service,
        is_key=partial(matches, key) if key else None,
        cors_origins=settings.cors_origin,
    )
    port = sock.getsockname()[1]
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    local = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    failed: list[str] = []  # filled if the tunnel that is required does not come up

    def on_ready() -> None:
        if key and key.fresh:
            say(f"key: {key.fresh} (new, kept in {key.place})")
        say(f"local: {local}\n{curl(local, key)}")
        if tunnel:
            tunnel.start()
        if settings.require_tunnel:
            threading.Thread(target=wait_for_tunnel, daemon=True).start()

    def wait_for_tunnel() -> None:
        if tunnel and not tunnel.wait(TUNNEL_SECONDS):
            failed.append(tunnel.failure or "it did not come up")
            server.stop_soon()

    server = Server(app, service.worker, drain_seconds=settings.drain_seconds, on_ready=on_ready)
    tunnel = make_tunnel(settings, port, service, key) if settings.with_tunnel else None
    try:
        server.serve_on(sock)
    finally:
        if tunnel:
            tunnel.stop()
        if service.tools:
            service.tools.close()
    if failed:
        print(f"error: --require-tunnel: {failed[0]}", file=sys.stderr)
    code = NO_TUNNEL if failed else int(service.worker.dead)
    if server.force_exit:
        sys.stdout.flush()
        os._exit(code)  # the engine may be in the middle of a long step
    return code


def make_tunnel(settings, port: int, service, key: Key | None):
    """Return the tunnel to this server, not started; what happens to it is told in one line."""
    from rlm.tunnel.tunnel import Tunnel

    def on_up(url: str) -> None:
        service.metrics.tunnel_up.set(1)
        say(f"public: {url}\n{curl(url, key)}")

    def on_down(line: str) -> None:
        service.metrics.tunnel_up.set(0)
        logger.warning("tunnel: %s", line)

    return Tunnel(
        port,
        endpoint_file=Path("runs/endpoint.json"),
        on_up=on_up,
        on_down=on_down,
        domain=settings.tunnel_domain,
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
