"""The server: what it shows, what it refuses, and that it fetches nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fake_study
import pytest
import stored
import test_browser as browsing

from dlas.core.errors import DlasError, OptionError
from dlas.core.locks import acquire, release
from dlas.explore.claims import claimed
from dlas.explore.storage import SqliteStorage
from dlas.explore.study import load_result
from dlas.report.server import StudyServer
from dlas.report.shelf import Shelf, places, study_files

HOSTILE = '../</script><script>window.hacked=1</script>"\u2028%2e'
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Answer = tuple[int, dict[str, str], str]


class Client:
    """A running server and somebody who asks it."""

    def __init__(self, server: StudyServer) -> None:
        self.server = server
        self.url = server.url

    def raw(self, method: str, target: str, headers: dict[str, str] | None = None) -> Answer:
        """One request, its target sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        with contextlib.closing(connection):
            given = {"Host": f"127.0.0.1:{self.server.server_port}", **(headers or {})}
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for key, value in given.items():
                connection.putheader(key, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, dict(answer.headers), answer.read().decode()

    def get(self, target: str = "/") -> str:
        with DIRECT.open(self.url.rstrip("/") + target, timeout=30) as answer:
            return answer.read().decode()

    def json(self, target: str) -> Any:
        return json.loads(self.get(target))

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.json("/api/studies")}


@pytest.fixture
def serving() -> Iterator[Callable[..., Client]]:
    running: list[tuple[StudyServer, threading.Thread]] = []

    def start(*given: Path, out: Path = Path("dlas-out"), host: str = "127.0.0.1", **options: Any) -> Client:
        server = StudyServer(Shelf(places(given, out)), host, 0, **options)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return Client(server)

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of studies, one of them with a hostile name."""
    folder = tmp_path_factory.mktemp("studies")
    stored.store(folder / "one", fake_study.study())
    stored.store(folder / "one", fake_study.study(name=HOSTILE, model="<img src=http://localhost/x>"))
    stored.store(folder / "two" / "deep", fake_study.all_failed(), tried=3)
    return folder


@pytest.fixture
def client(serving: Callable[..., Client], studies: Path, tmp_path: Path) -> Client:
    """A server of a copy of the studies."""
    shutil.copytree(studies, tmp_path, dirs_exist_ok=True)
    return serving(tmp_path)


def test_the_list_names_every_study_with_its_state_and_best_figures(client: Client) -> None:
    page = client.get()
    rows = client.rows()
    assert set(rows) == {"cifar10-resnet20", HOSTILE, "all failed"}
    done, part = rows["cifar10-resnet20"], rows["all failed"]
    assert (done["state"], done["points"], done["pending"]) == ("done", 71, 0)
    assert (part["state"], part["points"], part["pending"]) == ("stopped", 3, 5)
    assert done["outcomes"]["ok"] == 59
    assert [b["question"].split()[0] for b in done["best"]] == ["Fastest", "Smallest"]
    assert done["best"][0]["figures"]["Latency"].endswith(" ms")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", done["changed"])
    assert part["best"] == []
    assert done["best"][0]["choice"] in page
    assert "<b>3</b> of 8" in page


def test_the_page_of_a_study_is_its_report_and_the_json_is_the_study(client: Client, tmp_path: Path) -> None:
    row = client.rows()["cifar10-resnet20"]
    page = client.get(row["url"])
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["count"] == 71
    assert 'href="/"' in page
    storage = SqliteStorage(tmp_path / "one" / "study.db", create=False)
    result = load_result(storage, "cifar10-resnet20")
    storage.close()
    assert client.json(row["api"]) == json.loads(json.dumps(result.to_dict()))


def test_a_study_is_found_by_the_address_listed_whatever_its_name(client: Client) -> None:
    row = client.rows()[HOSTILE]
    assert client.json(row["api"])["name"] == HOSTILE
    page = client.get(row["url"])
    for text in (page, client.get()):
        assert "<script>window" not in text
        assert "img" not in Links(text).tags
        assert "window.hacked" in text  # it is shown, as text


class Links(HTMLParser):
    """Every address in an attribute, and every address in a style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.add(tag)
        names = {"src", "href", "action", "poster", "data", "srcset", "formaction", "ping", "background"}
        self.found += [value or "" for name, value in attrs if name in names]
        self.found += re.findall(
            r"url\([^)]*\)", " ".join(value or "" for name, value in attrs if name == "style")
        )

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += re.findall(r"url\([^)]*\)|@import", data)


def test_nothing_that_is_served_points_elsewhere(client: Client) -> None:
    for target in ("/", *(row["url"] for row in client.rows().values())):
        found = Links(client.get(target)).found
        assert found
        assert [link for link in found if not re.match(r"#|/(study/|api/studies$)?(?!/)|data:,", link)] == []


def test_links_elsewhere_would_be_noticed() -> None:
    assert Links('<a href="//x"><style>a{b:url(c)}</style><p style="d:url(e)">').found == [
        "//x",
        "url(c)",
        "url(e)",
    ]


def test_answers_forbid_what_a_browser_could_be_made_to_do(client: Client) -> None:
    for target in ("/", client.rows()[HOSTILE]["url"], "/api/studies", "/none"):
        _, headers, body = client.raw("GET", target)
        policy = dict(
            part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert "unsafe" not in policy.get("script-src", "")
        assert policy.get("connect-src", "'self'") == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]
        assert int(headers["Content-Length"]) == len(body.encode())


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a b",
     "10.0.0.1", "127.0.0.1:x", "localhost@evil.example", "127.0.0.1, evil.example"],
)  # fmt: skip
def test_another_name_is_refused(client: Client, host: str) -> None:
    for target in ("/", "/api/studies", client.rows()[HOSTILE]["url"]):
        code, _, body = client.raw("GET", target, {"Host": host})
        assert code == 421
        assert "cifar10" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8000"])
def test_own_names_are_known_through_any_tunnel(client: Client, host: str) -> None:
    assert client.raw("GET", "/api/studies", {"Host": host})[0] == 200


def test_a_request_without_or_with_two_names_is_refused(client: Client) -> None:
    for head in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", client.server.server_port)) as line:
            line.sendall(f"GET / HTTP/1.1\r\n{head}\r\n".encode())
            assert line.makefile("rb").readline().split()[1] == b"421"


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "<b>"]
)
def test_only_reading_is_answered(client: Client, method: str) -> None:
    code, headers, body = client.raw(method, "/api/studies")
    assert (code, headers["Allow"]) == (405, "GET, HEAD")
    assert "cifar10" not in body
    assert "<b>" not in body


@pytest.mark.parametrize(
    "target",
    ["/../../etc/passwd", "/study/../../../etc/passwd", "/study/..%2f..%2f..%2fetc%2fpasswd", "/study/%2e%2e/study.db",
     "/study.db", "/one/study.db", "//etc/passwd", "/study//etc/passwd", "/study/", "/study", "/api/studies/",
     "/api/studies/..", "/api/", "/study/cifar10-resnet20/", "/study/one%2Fstudy.db", "/study/%00", "/study/%ff%fe",
     "http://localhost/api/studies", "study/cifar10-resnet20", "*", "/x<script>", "/study/CIFAR10-RESNET20"],
)  # fmt: skip
def test_no_path_of_an_address_reaches_the_disk(
    client: Client, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = open

    def watched(file: Any, *rest: Any, **options: Any) -> Any:
        opened.append(str(file))
        return plain(file, *rest, **options)

    client.get()  # what is read once is read now
    monkeypatch.setattr("builtins.open", watched)
    code, _, body = client.raw("GET", target)
    assert code == 404
    assert not any("passwd" in name for name in opened)
    assert "root:" not in body
    assert "<script>" not in body


@pytest.mark.parametrize(
    "line", [b"GET\r\n", b"\x00\xff\r\n", b"GET / HTTP/9.9\r\n", b"GET " + b"/x" * 70_000 + b"\r\n"]
)
def test_nonsense_is_refused_and_the_next_one_served(client: Client, line: bytes) -> None:
    place = ("127.0.0.1", client.server.server_port)
    with contextlib.suppress(OSError), socket.create_connection(place) as connection:
        connection.sendall(line + b"\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert b"cifar10" not in connection.makefile("rb").read()
    assert len(client.rows()) == 3


def test_head_and_a_known_version_cost_no_body(client: Client) -> None:
    for target in ("/", client.rows()["all failed"]["url"], "/api/studies"):
        code, headers, body = client.raw("HEAD", target)
        assert (code, body) == (200, "")
        known = client.raw("GET", target, {"If-None-Match": headers["ETag"]})
        assert (known[0], known[2]) == (304, "")
        assert client.raw("GET", target)[1]["ETag"] == headers["ETag"]


def test_a_running_study_is_seen_to_grow(client: Client, tmp_path: Path) -> None:
    result = fake_study.all_failed()
    folder = tmp_path / "two" / "deep"
    target = client.rows()["all failed"]["url"]
    first = client.raw("HEAD", target)[1]["ETag"]
    lock = folder / ".claims" / f"{result.points[5].key}.lock"
    claim = acquire(lock)
    assert claim is not None
    assert claimed(folder) == {result.points[5].key}
    assert client.rows()["all failed"]["state"] == "running"
    assert client.rows()["cifar10-resnet20"]["state"] == "done"
    assert "Running: 5 points to go" in client.get(target)
    second = client.raw("HEAD", target)[1]["ETag"]
    listed = client.raw("HEAD", "/")[1]["ETag"]
    storage = SqliteStorage(folder / "study.db")
    stored.add(storage, result, 3, 4)
    third = client.raw("HEAD", target)[1]["ETag"]
    assert "Running: 4 points to go" in client.get(target)
    assert client.raw("HEAD", "/")[1]["ETag"] != listed
    stored.add(storage, result, 3, 4)  # the same point tried again
    fourth = client.raw("HEAD", target)[1]["ETag"]
    stored.add(storage, result, 4, 8)
    storage.close()
    release(lock, claim)
    assert len({first, second, third, fourth, client.raw("HEAD", target)[1]["ETag"]}) == 5
    assert client.rows()["all failed"]["state"] == "done"
    assert "Interrupted" not in client.get(target)


def test_a_new_study_appears_and_a_removed_one_goes(client: Client, tmp_path: Path) -> None:
    path = stored.store(tmp_path / "three", fake_study.one_point())
    url = client.rows()["single"]["url"]
    assert "resnet20" in client.get(url)
    path.unlink()
    assert "single" not in client.rows()
    assert client.raw("GET", url)[0] == 404


def test_a_claim_left_by_a_dead_process_is_not_running(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "two" / "deep"
    (folder / ".claims").mkdir()
    (folder / ".claims" / f"{fake_study.all_failed().points[5].key}.lock").touch()
    assert claimed(folder) == frozenset()
    assert client.rows()["all failed"]["state"] == "stopped"


def test_damage_is_told_in_its_row_and_the_others_are_served(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "study.db").write_bytes(b"SQLite format 3\0" + b"junk" * 1000)
    (tmp_path / "foreign").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "foreign" / "study.db")) as db:
        db.execute("CREATE TABLE trials (number)")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "study.db").touch()
    with contextlib.closing(sqlite3.connect(tmp_path / "one" / "study.db")) as db, db:
        db.execute("UPDATE points SET record = '[]' WHERE study = ?", (HOSTILE,))
    rows = client.rows()
    for folder, word in (("bad", "not a database"), ("foreign", "no dlas wrote"), ("empty", "empty")):
        row = rows[str(tmp_path / folder / "study.db")]
        assert (row["state"], row["url"]) == ("damaged", "")
        assert word in row["problem"]
        assert word in client.get()
    assert (rows[HOSTILE]["state"], rows["cifar10-resnet20"]["state"]) == ("damaged", "done")
    assert "damaged" in rows[HOSTILE]["problem"]
    assert client.json(rows["cifar10-resnet20"]["api"])["name"] == "cifar10-resnet20"
    assert (tmp_path / "empty" / "study.db").stat().st_size == 0
    assert (tmp_path / "empty" / "study.db").parent.joinpath("study.db-wal").exists() is False


def test_a_study_that_breaks_while_it_is_shown_is_one_line(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = client.rows()["cifar10-resnet20"]

    def fail(*_: Any) -> None:
        raise DlasError("the study in it is damaged: <b>", "copy it again")

    monkeypatch.setattr("dlas.report.shelf.load_result", fail)
    code, headers, body = client.raw("GET", row["url"])
    assert (code, body) == (500, "the study in it is damaged: <b> (copy it again)\n")
    assert headers["Content-Type"].startswith("text/plain")
    code, _, body = client.raw("GET", row["api"])
    assert (code, json.loads(body)["error"][:9]) == (500, "the study")


def test_a_defect_is_told_and_the_server_goes_on(
    serving: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    stored.store(tmp_path, fake_study.one_point())
    client = serving(tmp_path, tell=told.append)
    monkeypatch.setattr("dlas.report.html.render", lambda *_: 1 / 0)
    assert client.raw("GET", "/study/single")[0] == 500
    assert ["ZeroDivisionError" in line for line in told] == [True]
    assert client.raw("GET", "/")[0] == 200


def test_the_same_name_twice_has_two_addresses(serving: Callable[..., Client], tmp_path: Path) -> None:
    stored.store(tmp_path / "a", fake_study.one_point())
    stored.store(tmp_path / "b", fake_study.one_point(), tried=0)
    client = serving(tmp_path)
    rows = client.json("/api/studies")
    assert [row["name"] for row in rows] == ["single", "single"]
    assert sorted(len(client.json(row["api"])["points"]) for row in rows) == [0, 1]
    assert client.raw("GET", "/study/single")[0] == 404


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_browsers_would_take_for_folders_have_another_address(
    serving: Callable[..., Client], tmp_path: Path, name: str
) -> None:
    stored.store(tmp_path, fake_study.study(name=name))
    client = serving(tmp_path / "study.db")
    (row,) = client.json("/api/studies")
    assert len(row["url"].rpartition("/")[2]) > 4
    assert client.json(row["api"])["name"] == name
    assert "<a href" in client.get()


def test_places_are_folders_files_stacks_and_names(serving: Callable[..., Client], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stack = tmp_path / "later.toml"
    stack.write_text('name = "later"\n[model]\npath = "digits-cnn"\n')
    client = serving(stack, out=out)
    assert client.rows()["later"]["state"] == "waiting"
    assert "Not started yet" in client.get()
    path = stored.store(out, fake_study.study(name="later"), tried=2)
    stored.store(out, fake_study.one_point())
    assert {n: r["points"] for n, r in client.rows().items()} == {"later": 2}
    assert set(serving(path).rows()) == set(serving(out=out).rows()) == {"later", "single"}
    assert set(serving(Path("single"), out=out).rows()) == {"single"}
    assert set(serving(Path("single"), stack, out=out).rows()) == {"single", "later"}
    assert set(serving(stack, out, out=out).rows()) == {"single", "later"}
    with pytest.raises(DlasError, match="no such folder, study file, stack file or study"):
        places(["nothing"], out)
    with pytest.raises(DlasError, match="no such folder"):
        places([], tmp_path / "nowhere")


def test_links_hidden_and_deep_folders_are_left_alone(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "outside"
    for folder in ("a/b/c", "a/b/c/d", ".hidden", "fifo", "link"):
        (inside / folder).mkdir(parents=True)
    outside.mkdir()
    for place in (inside / "a/b/c", inside / "a/b/c/d", inside / ".hidden", outside):
        (place / "study.db").touch()
    (inside / "away").symlink_to(outside)
    (inside / "link" / "study.db").symlink_to(outside / "study.db")
    os.mkfifo(inside / "fifo" / "study.db")
    assert study_files(inside) == [inside / "a/b/c/study.db"]


def test_a_port_in_use_and_a_foreign_address_are_refused_in_one_line(client: Client) -> None:
    with pytest.raises(DlasError, match=f"port {client.server.server_port} of 127.0.0.1 is in use"):
        StudyServer(client.server.shelf, "127.0.0.1", client.server.server_port)
    with pytest.raises(DlasError, match="cannot be served"):
        StudyServer(client.server.shelf, "192.0.2.1", 0)
    with pytest.raises(DlasError, match="cannot be served"):
        StudyServer(client.server.shelf, "a" * 70 + ".invalid", 0)
    with pytest.raises(OptionError, match="port"):
        StudyServer(client.server.shelf, "127.0.0.1", 70_000)


def test_other_addresses_than_loopback_are_warned_of(serving: Callable[..., Client], tmp_path: Path) -> None:
    told: list[str] = []
    client = serving(tmp_path, host="0.0.0.0", tell=told.append)
    assert client.url == f"http://127.0.0.1:{client.server.server_port}/"
    assert [line.startswith("warning: anyone who can reach 0.0.0.0") for line in told] == [True]
    assert client.raw("GET", "/", {"Host": "192.0.2.7:8000"})[0] == 200
    assert client.raw("GET", "/", {"Host": "evil.example"})[0] == 421
    told.clear()
    serving(tmp_path, host="localhost", tell=told.append)
    assert told == []


def test_nobody_is_asked_for_names(
    serving: Callable[..., Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a name was looked up")

    for name in ("getfqdn", "gethostbyaddr", "gethostbyname", "getnameinfo"):
        monkeypatch.setattr(socket, name, refuse)
    assert serving(tmp_path).rows() == {}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browsing.CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.mark.skipif(browsing.CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(client: Client, browser: Any, tmp_path: Path, width: int) -> None:
    problems: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda m: problems.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", lambda r: r.url.startswith((client.url, "data:", "blob:")) or problems.append(r.url))
    page.goto(client.url)
    sideways = "document.documentElement.scrollWidth - window.innerWidth"
    assert page.evaluate(sideways) <= 0
    page.get_by_role("link", name="window.hacked").click()
    page.locator("html[data-ready]").wait_for(state="attached")
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("#pareto-chart .mark-symbol.role-mark path").count() > 10
    assert page.evaluate(sideways) <= 0
    page.get_by_role("link", name="dlas", exact=False).first.click()
    page.get_by_role("link", name="all failed").click()
    page.locator("html[data-ready]").wait_for(state="attached")
    assert page.locator("#table tr[data-row]").count() == 3
    # The page as it is when its study runs: it looks every 4 s, here at once.
    page.clock.install()
    page.reload()
    page.locator("html[data-ready]").wait_for(state="attached")
    storage = SqliteStorage(tmp_path / "two" / "deep" / "study.db")
    stored.add(storage, fake_study.all_failed(), 3, 5)
    page.clock.run_for(16_000)
    page.locator("#table tr[data-row]").nth(4).wait_for()
    page.locator("#pareto-only").check()
    stored.add(storage, fake_study.all_failed(), 5, 8)
    storage.close()
    page.clock.run_for(16_000)
    page.get_by_role("button", name="Show it").click()
    page.locator("#table tr[data-row]").nth(7).wait_for()
    context.close()
    assert problems == []


@pytest.mark.skipif(browsing.CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_list_is_accessible(client: Client, browser: Any, tmp_path: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    (tmp_path / "study.db").touch()
    lock = tmp_path / "two" / "deep" / ".claims" / f"{fake_study.all_failed().points[5].key}.lock"
    claim = acquire(lock)
    assert claim is not None
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(client.url)
    assert page.locator(".study.running, .study.damaged").count() == 2
    violations = axe.Axe().run(page).response["violations"]
    release(lock, claim)
    context.close()
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]][:4]) for v in violations] == []
