"""One shape for every error: {"error": {code, type, message, param, request_id}}.

A message says what is wrong and what to do; it never holds what the client sent.
"""

import json

from pydantic import BaseModel

# status -> what it means; the OpenAPI document lists them with every operation.
STATUSES = {
    400: "not JSON, more tokens than the model's context, or a field that cannot be kept",
    401: "no key, or a wrong one",
    404: "no such path or model",
    405: "no such method here",
    408: "the body took too long to arrive",
    413: "the body is too large",
    422: "a field is missing, unknown or not allowed",
    429: "the queue is full",
    500: "an error of the server; its text is in the server's log",
    503: "not ready yet, shutting down, or the engine is dead",
    504: "the request's own deadline has passed",
}


class ErrorBody(BaseModel):
    """What went wrong. param: the field it is about, if it is about one."""

    code: str
    type: str
    message: str
    param: str | None
    request_id: str | None


class ErrorReply(BaseModel):
    error: ErrorBody


class ApiError(Exception):
    """An answer other than 200. retry_after: seconds until another try makes sense."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def body(self, request_id: str | None) -> dict:
        """Return the error as the client sees it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "overloaded_error"}.get(self.status, kind)
        return {
            "error": {
                "code": self.code,
                "type": kind,
                "message": self.message,
                "param": self.param,
                "request_id": request_id,
            }
        }


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the error for a field that is not allowed."""
    return ApiError(422, "invalid_request", message, param=param)


def late() -> ApiError:
    """Return the error for a request whose time is over."""
    message = "the request's deadline has passed; allow it more time or fewer tokens"
    return ApiError(504, "timeout", message)


def failed() -> ApiError:
    """Return the error for what is the server's own fault: its text stays in the log."""
    return ApiError(500, "internal_error", "the server failed; its log has the reason")


def encode(value) -> bytes:
    """Return JSON as UTF-8, in one line; ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()
