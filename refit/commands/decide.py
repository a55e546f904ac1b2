"""A page to decide about the suspects of the last audit with keys, one after the other: `make decide`.

It is served on 127.0.0.1 until Ctrl-C. Each decision is written to data/audit.csv at once, and `prepare` obeys.
"""

import json
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, cast, get_args

from refit.artifacts.decisions import Decision, Kind, decide, read_decisions, same
from refit.artifacts.paths import DECISIONS, PREPARED
from refit.artifacts.prepared import Pixels, pixels_in, read_info, read_manifest
from refit.artifacts.suspects import Suspect, is_decided, read_suspects
from refit.reports.decide import decide_page
from refit.reports.thumbnails import thumbnail
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

HOST = "127.0.0.1"
SIDE = 640  # pixels of a picture at most
_LONGEST = 2**16  # bytes of a request
_TIMEOUT = 30.0  # seconds for a request to arrive

Answer = Mapping[str, object]


def main(port: int) -> None:
    """Raises UserError if there is no audit of the prepared data, or the port cannot be used."""
    info, manifest = read_info(), read_manifest()
    suspects = read_suspects(info, [row.name for row in manifest])
    if not suspects:
        print("the last audit found no suspects: there is nothing to decide")
        return
    desk = Desk(suspects, info.classes, pixels_in(PREPARED, manifest))
    desk.read()  # a fault in data/audit.csv is better known now
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, desk))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not from 0 to 65535"
        raise UserError(f"port {port} cannot be used: {reason}; choose another one: make decide PORT=NUMBER") from None
    for number in (signal.SIGINT, signal.SIGTERM):  # also if a shell's `cmd &` ignores the first
        signal.signal(number, signal.default_int_handler)
    with server:
        print(f"{desk.progress()}: http://{HOST}:{server.server_port}\n"
              f"Each decision is written to {DECISIONS} at once. To end: Ctrl-C", flush=True)  # fmt: skip
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            with desk.lock:  # no decision is half made
                print(f"\n{desk.progress()}; to obey {DECISIONS}: dvc repro")


class Desk:
    """The suspects and what is decided about them: what the page reads and writes, one request at a time."""

    def __init__(self, suspects: Sequence[Suspect], classes: Sequence[str], pixels: Callable[[str], Pixels]) -> None:
        self.lock = Lock()
        self.count = len(suspects)
        self._suspects, self._classes, self._pixels = suspects, classes, pixels
        self._done: list[tuple[int, str, Decision | None, Decision | None]] = []
        """What was decided here, the last one at the end: the suspect, the file, its decision before and after."""

    def page(self, nonce: str) -> str:
        return decide_page(self._suspects, self._classes, nonce)

    def read(self) -> Answer:
        """What is decided about the suspects now, and how many decisions can be taken back."""
        found = {one.file: one._asdict() for one in read_decisions()}
        files = {image.file for suspect in self._suspects for image in suspect.undecided}
        return {"decisions": {file: found[file] for file in found if file in files}, "undo": len(self._done)}

    def progress(self) -> str:
        decisions = {one.file: one for one in read_decisions()}
        decided = sum(is_decided(suspect, decisions) for suspect in self._suspects)
        return f"{decided:,} of {self.count:,} suspects decided"

    def pictures(self, number: int) -> Answer:
        shown = [thumbnail(self._pixels(file), SIDE) for file in self._suspects[number].shown]
        return {"pictures": [{"url": picture.url, "pixelated": picture.pixelated} for picture in shown]}

    def decide(self, asked: Mapping[str, Any]) -> Answer:
        """Write a decision: `suspect` is its number, `file` one of its images, `decision` and `label` as in the file.

        Raises UserError if there is no such choice, or data/audit.csv has a fault.
        """
        number, kind, label = (asked.get(name) for name in ("suspect", "decision", "label"))
        if not isinstance(number, int) or not 0 <= number < self.count or kind not in get_args(Kind):
            raise UserError(f"there is no such suspect or decision: {asked}")
        about = [image for image in self._suspects[number].undecided if image.file == asked.get("file")]
        if not about or label not in (self._classes if kind == "relabel" else [""]):
            raise UserError(f"there is no such image or class: {asked}")
        decision = self._suspects[number].decision(about[0], cast(Kind, kind), str(label))
        before = decide(decision.file, decision)
        if not same(before, decision):
            self._done.append((number, decision.file, before, decision))
        return self.read()

    def undo(self, _: Mapping[str, Any]) -> Answer:
        """Take back the last decision that was made here. Raises UserError if there is none, or if somebody has changed
        it in the file since then."""
        if not self._done:
            raise UserError(f"nothing was decided here that could be taken back; {DECISIONS} has all decisions")
        number, file, before, after = self._done.pop()
        now = {one.file: one for one in read_decisions()}.get(file)
        if not same(now, after):
            raise UserError(f"{DECISIONS} was changed elsewhere: {file} has another decision now, which stays")
        decide(file, before)
        return {**self.read(), "suspect": number}


class _Handler(BaseHTTPRequestHandler):
    """Answers the page alone: another site's page can neither read nor decide anything, whatever name it gives this
    server (DNS rebinding)."""

    timeout = _TIMEOUT

    def __init__(self, desk: Desk, *args: Any) -> None:
        self._desk = desk
        super().__init__(*args)

    def do_GET(self) -> None:
        folder, _, number = self.path.strip("/").partition("/")
        if self._is_foreign():
            self._send_json(HTTPStatus.FORBIDDEN, {"error": "this page is not the one that make decide serves"})
        elif self.path == "/":
            nonce = secrets.token_urlsafe()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self._desk.page(nonce).encode(), nonce)
        elif self.path == "/decisions":
            self._answer(self._desk.read)
        elif folder == "suspects" and number.isascii() and number.isdigit() and int(number) < self._desk.count:
            self._answer(lambda: self._desk.pictures(int(number)))
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing here"})

    def do_POST(self) -> None:
        actions = {"/decide": self._desk.decide, "/undo": self._desk.undo}
        length = self.headers.get("Content-Length", "")
        if self._is_foreign() or not self.headers.get("Origin"):  # each browser sends it with a POST
            self._send_json(HTTPStatus.FORBIDDEN, {"error": "this page is not the one that make decide serves"})
        elif self.path not in actions:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing here"})
        elif not length.isdigit() or int(length) > _LONGEST:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": "the request is too long"})
        else:
            content = self.rfile.read(int(length))
            try:
                asked = json.loads(content)
            except ValueError:
                asked = None
            if isinstance(asked, dict):
                self._answer(lambda: actions[self.path](asked))
            else:
                self._send_json(HTTPStatus.BAD_REQUEST, {"error": "the request is not a JSON object"})

    def _is_foreign(self) -> bool:
        own = [f"{name}:{self.connection.getsockname()[1]}" for name in (HOST, "localhost")]
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        return host not in own or (origin is not None and origin != f"http://{host}")

    def _answer(self, respond: Callable[[], Answer]) -> None:
        try:
            with self._desk.lock:
                answer = respond()
        except UserError as error:
            self._send_json(HTTPStatus.CONFLICT, {"error": str(error)})
        else:
            self._send_json(HTTPStatus.OK, answer)

    def _send_json(self, status: HTTPStatus, answer: Answer) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, nonce: str = "") -> None:
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal shows the address."""


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("--port", type=int, default=0, help="of the page; a free one by default")
    run_command(main, parser)
