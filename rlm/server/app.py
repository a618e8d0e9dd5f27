"""The routes, put together: what a service can do, under which path, behind which door."""

import logging
import time
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from rlm.server import completions_route, openai_route, responses_route
from rlm.server.chat_requests import ChatRequest
from rlm.server.completions_route import CompletionRequest
from rlm.server.errors import ApiError, encode, failed
from rlm.server.guard import RequestGuard
from rlm.server.metrics import CONTENT_TYPE
from rlm.server.openapi import EVENTS, EVENTS_AND_TEXT, HEALTH, describe, errors, json_body
from rlm.server.page import page_response
from rlm.server.reasoning import reason
from rlm.server.replies import ReasoningReply
from rlm.server.requests import ReasoningRequest, check
from rlm.server.responses_requests import ResponsesRequest
from rlm.server.service import Service

logger = logging.getLogger("rlm.server")


# What every route that asks the model may answer beside a reply.
REFUSALS = errors(400, 401, 408, 413, 422, 429, 500, 503, 504)


def make_app(
    service: Service,
    *,
    is_key: Callable[[str], bool] | None,
    cors_origins: Sequence[str] = (),
):
    """Return the ASGI application. is_key: whether a text is the key; None needs none."""
    app = FastAPI(title="Reasoning model", version="1", redoc_url=None, redirect_slashes=False)
    _add_endpoints(app, service)
    _add_models(app, service)
    _add_state(app, service, is_key is not None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    service.metrics.watch(service.worker)
    # FastAPI's own way to another description is to put a function in the method's place.
    bodies = (ReasoningRequest, ChatRequest, CompletionRequest, ResponsesRequest)
    described = describe(app, bodies, is_key is not None)
    app.openapi = described  # type: ignore[method-assign]
    paths = [route for route in app.routes if isinstance(route, Route)]
    guarded = RequestGuard(app, is_key=is_key, paths=paths, count=service.metrics.count)
    if not cors_origins:
        return guarded
    # Outside of the door: a browser asks beforehand without a key, and must read refusals too.
    return CORSMiddleware(
        guarded,
        allow_origins=list(cors_origins),
        allow_methods=["GET", "POST"],
        # Clients for browsers send headers of their own (x-stainless-...); none of them opens
        # a door, and the key is never sent by the browser itself.
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )


def _add_endpoints(app: FastAPI, service: Service) -> None:
    @app.post(
        "/phase1/reasoning",
        response_model=ReasoningReply,
        responses=REFUSALS | {200: EVENTS_AND_TEXT},
        openapi_extra=json_body(ReasoningRequest),
    )
    async def phase1_reasoning(request: Request) -> Response:
        """Ask a question: the reasoning, the answer, and the votes of n samples."""
        asked = check(ReasoningRequest, await request.body())
        return await reason(service, asked, request.state.request_id, request.receive)

    @app.post(
        "/v1/chat/completions",
        response_model=openai_route.ChatReply,
        responses=REFUSALS | {200: EVENTS},
        openapi_extra=json_body(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Go on with a conversation, as clients of the chat completions API ask for it."""
        asked = check(ChatRequest, await request.body())
        return await openai_route.chat(service, asked, request.state.request_id, request.receive)

    @app.post(
        "/v1/completions",
        response_model=completions_route.CompletionReply,
        responses=REFUSALS | {200: EVENTS},
        openapi_extra=json_body(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Go on with a text as it is, without a chat template."""
        asked = check(CompletionRequest, await request.body())
        id, receive = request.state.request_id, request.receive
        return await completions_route.complete(service, asked, id, receive)

    @app.post(
        "/v1/responses",
        response_model=responses_route.ResponsesReply,
        responses=REFUSALS | {200: EVENTS},
        openapi_extra=json_body(ResponsesRequest),
    )
    async def responses(request: Request) -> Response:
        """Answer a text or a conversation, in the plain form of the responses API."""
        asked = check(ResponsesRequest, await request.body())
        id, receive = request.state.request_id, request.receive
        return await responses_route.respond(service, asked, id, receive)


def _add_models(app: FastAPI, service: Service) -> None:
    started = int(time.time())

    @app.get("/v1/models", response_model=openai_route.ModelList, responses=errors(401, 500))
    async def models() -> dict:
        """The one model."""
        return openai_route.models(service, started)

    @app.get(
        "/v1/models/{model:path}",
        response_model=openai_route.Model,
        responses=errors(401, 404, 500),
    )
    async def model(model: str) -> dict:
        """The model, by its name."""
        return openai_route.model(service, model, started)


def _add_state(app: FastAPI, service: Service, key_required: bool) -> None:
    worker = service.worker

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_response()

    @app.get("/health", responses={200: HEALTH, 503: HEALTH})
    async def health() -> Response:
        """Whether requests are accepted; open to everybody."""
        status = "ok"
        try:
            worker.check_open()
        except ApiError as error:
            status = error.code
        state = {
            "status": status,
            "model": service.model,
            "format": service.format.name,
            "max_tokens": service.max_tokens,
            "key_required": key_required,
            "worker_alive": worker.alive,
            "last_step_seconds": round(time.monotonic() - worker.last_step, 3),
            "rows": worker.rows,
            "queued": worker.queued,
        }
        code = 200 if status == "ok" else 503
        return Response(encode(state), code, media_type="application/json")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    body = encode(error.body(request.state.request_id))
    return Response(body, error.status, error.headers, media_type="application/json")


async def _failure(request: Request, error: Exception) -> Response:
    """The answer to a bug; the framework raises the error once more, and the door logs it."""
    return await _api_error(request, failed())


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    known = {
        404: ("not_found", "there is no such path; /openapi.json lists what there is"),
        405: ("method_not_allowed", "this path has no such method; /openapi.json lists them"),
    }
    if error.status_code not in known:
        logger.error("unexpected HTTP error %d", error.status_code)
        return await _api_error(request, failed())
    code, message = known[error.status_code]
    headers = dict(error.headers or {})
    return await _api_error(request, ApiError(error.status_code, code, message, headers=headers))
