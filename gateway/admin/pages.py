"""The pages themselves: an overview with a search, and one page per answer with the buttons that block and approve.

In: requests under /admin. Out: HTML written on the server, without scripts and without anything from elsewhere. All
that takes time happens in threads, one search at a time, so that hits do not wait for those who look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.admin import answers, chart
from gateway.admin.access import CHALLENGE, Access, is_own_click
from gateway.admin.history import DAYS, History, Past
from gateway.reload import Serving
from gateway.upstream import Receive, Scope, Send
from prebake.errors import PrebakeError
from prebake.settings import Settings
from prebake.verdicts import answer_digest
from storage.objects import Objects
from storage.verdicts import approve, block, read_verdicts, unblock

PATH = "/admin"
HISTORY_S = 1.0
LONGEST_FORM = 8192
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
_FOLDER = Path(__file__).parent

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class Admin:
    """The page of one gateway process, an ASGI application. Without an admin key in the settings there is none."""

    def __init__(self, settings: Settings, objects: Objects, serving: Serving) -> None:
        self._objects = objects
        self._serving = serving
        self._one_at_a_time = asyncio.Lock()
        self._templates = Environment(
            loader=FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"when": _when, "number": "{:,.0f}".format, "query": urlencode}
        self._app = Starlette(
            routes=[
                Route(PATH, self._guarded(self._overview)),
                Route(PATH + "/answers/{fingerprint}", self._guarded(self._answer)),
                Route(PATH + "/answers/{fingerprint}", self._guarded(self._judge), methods=["POST"]),
                Route(PATH + "/style.css", self._guarded(self._style)),
            ]
        )
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        self._access = Access(settings.keys)
        self._routes = [route.name for route in settings.routes]
        self._table = settings.route_table
        self._history = History(self._objects, settings.prices.online)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request under PATH."""
        await self._app(scope, receive, send)

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            if not self._access.admits(request.headers):
                response: Response = PlainTextResponse("An admin key is needed.\n", 401, CHALLENGE)
            elif request.method == "POST" and not is_own_click(request.headers):
                response = PlainTextResponse("This must come from the page itself.\n", 403)
            else:
                response = await handler(request)
            response.headers.update(HEADERS)
            return response

        return guarded

    async def _overview(self, request: Request) -> Response:
        text, route = request.query_params.get("q", "")[:500], request.query_params.get("route", "")
        number = _page_number(request.query_params.get("page", ""))
        past, found = await asyncio.gather(
            _or_problem(asyncio.to_thread(self._history.look, datetime.now(UTC), most_s=HISTORY_S)),
            _or_problem(self._search(text, route, number)),
        )
        verdicts = await _or_problem(asyncio.to_thread(read_verdicts, self._objects))
        problems = [one for one in (self._serving.problem, past, found, verdicts) if isinstance(one, str) and one]
        return self._page(
            "overview.html",
            problems=problems,
            past=None if isinstance(past, str) else _drawn(past),
            days=DAYS,
            found=None if isinstance(found, str) else found,
            verdicts=None if isinstance(verdicts, str) else verdicts,
            text=text,
            route=route,
            number=number,
            routes=self._routes,
        )

    async def _search(self, text: str, route: str, number: int) -> answers.Page:
        async with self._one_at_a_time:
            return await asyncio.to_thread(answers.search, self._objects, text=text, route=route, page=number)

    async def _answer(self, request: Request) -> Response:
        fingerprint = _fingerprint(request)
        async with self._one_at_a_time:
            found = await _or_problem(asyncio.to_thread(answers.find, self._objects, fingerprint))
        verdicts = await _or_problem(asyncio.to_thread(read_verdicts, self._objects))
        if isinstance(found, str) or isinstance(verdicts, str):
            problems = [one for one in (found, verdicts) if isinstance(one, str)]
            return self._page("problem.html", status=503, problems=problems)
        served = self._served(fingerprint)
        if found is None and served is None:
            return self._page("problem.html", status=404, problems=[f"There is no answer {fingerprint}."])
        withheld = None
        if served is not None and served.route in self._routes:
            withheld = verdicts.withhold(self._table[served.route], served.fingerprint, served)
        return self._page(
            "answer.html",
            fingerprint=fingerprint,
            found=found,
            served=served,
            served_message=served.message_json.decode() if served else None,
            digest=answer_digest(served) if served else None,
            withheld=withheld,
            blocked=verdicts.blocked.get(fingerprint),
            approved=verdicts.approved.get(fingerprint),
        )

    async def _judge(self, request: Request) -> Response:
        fingerprint = _fingerprint(request)
        form = await _form(request)
        verdict, note, key, now = (
            form.get("verdict"),
            form.get("note", ""),
            bytes.fromhex(fingerprint),
            datetime.now(UTC),
        )
        if verdict == "approve":
            served = self._served(fingerprint)
            if served is None or answer_digest(served) != form.get("digest"):
                problem = "The answer has changed since the page was shown; read it again, then approve it."
                return self._page("problem.html", status=409, problems=[problem])
            change = asyncio.to_thread(approve, self._objects, {key: answer_digest(served)}, now=now, note=note)
        elif verdict == "block":
            change = asyncio.to_thread(block, self._objects, [key], now=now, note=note)
        elif verdict == "unblock":
            change = asyncio.to_thread(unblock, self._objects, [key])
        else:
            raise HTTPException(400, "verdict: expected block, unblock or approve")
        changed = await _or_problem(change)
        if isinstance(changed, str):
            return self._page("problem.html", status=503, problems=[changed])
        logger.info("admin page: %s %s", verdict, fingerprint)
        return RedirectResponse(f"{PATH}/answers/{fingerprint}", 303)

    async def _style(self, _request: Request) -> Response:
        return Response((_FOLDER / "style.css").read_bytes(), media_type="text/css; charset=utf-8")

    def _served(self, fingerprint: str) -> Any:
        """What a request would be answered now. On the event loop, as every lookup (see gateway/reload.py)."""
        store = self._serving.store
        try:
            return store.get(bytes.fromhex(fingerprint), datetime.now(UTC)) if store else None
        except PrebakeError:  # a damaged answer is served to nobody
            return None

    def _page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        store = self._serving.store
        snapshot = store.manifest if store else None
        text = self._templates.get_template(template).render(
            snapshot=snapshot, reason=str(self._serving.reason), now=datetime.now(UTC), **values
        )
        return HTMLResponse(text, status)


def _drawn(past: Past) -> dict[str, Any]:
    """The past as the page shows it: sums, and the two drawings."""
    times = [at for at, _ in past.hours]
    hours = [hour for _, hour in past.hours]
    total = past.total
    in_usd = total.saved_usd > 0
    saved = {"dollars saved" if in_usd else "tokens saved": [h.saved_usd if in_usd else h.saved_tokens for h in hours]}
    counts = {
        "hits": [h.hits for h in hours],
        "misses": [h.misses for h in hours],
        "bypasses": [h.bypasses for h in hours],
    }
    return {
        "total": total,
        "complete": past.complete,
        "in_usd": in_usd,
        "ratio": total.hits / total.requests if total.requests else None,
        "requests": chart.draw(times, counts),
        "saved": chart.draw(times, saved, _usd if in_usd else _short),
    }


async def _or_problem(work: Awaitable[Any]) -> Any:
    """What the work gives, or the sentence that says why not."""
    try:
        return await work
    except PrebakeError as error:
        return str(error)
    except Exception as error:
        logger.exception("admin page")
        return f"unexpected {type(error).__name__}; see the gateway's log"


def _fingerprint(request: Request) -> str:
    fingerprint: str = request.path_params["fingerprint"]
    if len(fingerprint) != 32 or not set(fingerprint) <= set("0123456789abcdef"):
        raise HTTPException(404)
    return fingerprint


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            raise HTTPException(413)
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _page_number(text: str) -> int:
    return min(int(text), 10_000) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _when(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _usd(value: float) -> str:
    return f"${value:,.2f}" if value >= 1 else f"${value:.2g}"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
