"""Who may come in, from where and with how much: each attempt gets the right refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from producer.cli import cli
from producer.session import Session
from storage.errors import BadInputError, UnreachableError
from storage.jobstore import JobStore
from storage.records import Claim, SubmissionState
from storage.settings import Settings
from tests.unit.producer.conftest import StandInWorker
from tests.web.conftest import BASE, FAILED, MakeClient, form_token, rules
from web.discretion import Discretion, discreet, folders_of
from web.guard import MAX_BODY, MAX_UPLOAD
from web.hosts import Hosts, is_loopback
from web.limits import RateLimit
from web.serving import Listening, config_of, parse_listening, rules_of
from web.tokens import SESSION_COOKIE, Token, read_token

SECRET = "correct-horse-battery-staple"  # noqa: S105  (of these tests)
ROOT = Path(__file__).parents[2]
PAGE = {"accept": "text/html"}


@pytest.fixture
def token() -> Token:
    """The token that callers have to know."""
    return Token(hashlib.sha256(SECRET.encode()).hexdigest())


@pytest.fixture
def guarded(make_client: MakeClient, token: Token) -> TestClient:
    """A client of a site that wants it."""
    return make_client(rules(token))


def test_without_a_token_nothing_is_shown(guarded: TestClient, otters: str) -> None:
    """Programs get a challenge, browsers the way to the login, also for what does not exist."""
    for path in (
        "/api/v1/submissions",
        f"/submissions/{otters}/jobs/0/picture",
        "/live?id=otters",
        "/nothing",
    ):
        answer = guarded.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    sent = guarded.get("/workers?all=1", headers=PAGE, follow_redirects=False)
    assert sent.headers["location"] == "/login?next=/workers%3Fall%3D1"


def test_a_wrong_token_is_refused_and_soon_slowed_down(make_client: MakeClient, token: Token) -> None:
    """Guessing is limited, by header and by form."""
    client = make_client(rules(token, guessing=RateLimit(rate=1e-9, burst=3)))
    wrong = [
        client.get("/api/v1/workers", headers={"authorization": "Bearer " + "x" * 30}).status_code
        for _ in range(4)
    ]
    assert wrong == [401, 401, 401, 429]
    right = client.get("/api/v1/workers", headers={"authorization": f"Bearer {SECRET}"})
    assert right.status_code == 429, "a guess that is right would be told from others"
    fields = {"form_token": form_token(client, "/login"), "token": "y" * 30}
    assert client.post("/login", data=fields).status_code == 429


def test_the_right_token_lets_programs_and_browsers_in(guarded: TestClient) -> None:
    """A program shows it each time, a browser gets a session for it."""
    assert guarded.get("/api/v1/workers", headers={"authorization": f"Bearer {SECRET}"}).status_code == 200
    form = {"form_token": form_token(guarded, "/login"), "token": SECRET, "next": "/workers"}
    answer = guarded.post("/login", data=form, follow_redirects=False)
    assert answer.headers["location"] == "/workers"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert SECRET not in answer.headers["set-cookie"]
    assert guarded.get("/workers").status_code == 200
    guarded.post("/logout", data={"form_token": form_token(guarded)})
    assert guarded.get("/workers", headers={"accept": "*/*"}).status_code == 401


def test_a_session_that_was_made_up_or_has_ended_is_none(
    guarded: TestClient, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is signed, and another token's sessions are no sessions of this one."""
    session = token.session()
    end, signature = session.split(".")
    other = Token("0" * 64).session()
    by_hash = Token(hashlib.sha256(SECRET.encode()).hexdigest()).session()
    for made_up in ("", "x", f"{int(end) + 1}.{signature}", f"{end}.", other, by_hash, "é.ü"):
        assert not token.knows(made_up)
    guarded.cookies.set(SESSION_COOKIE, session)
    assert guarded.get("/workers").status_code == 200
    monkeypatch.setattr("web.tokens.time.time", lambda: float(end) + 1)
    assert guarded.get("/workers").status_code == 401


@pytest.mark.parametrize(
    "next_", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x"]
)
def test_the_login_leads_nowhere_else(guarded: TestClient, next_: str) -> None:
    """Whatever address was put into its link."""
    form = {"form_token": form_token(guarded, "/login"), "token": SECRET, "next": next_}
    assert guarded.post("/login", data=form, follow_redirects=False).headers["location"] == "/"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8344", "localhost@evil", "", "a b"])
def test_a_name_that_is_not_ours_is_refused(client: TestClient, host: str) -> None:
    """So no page can point a name of its own at this server and read what it answers."""
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8344", "127.0.0.1", "[::1]:8344", "192.168.1.7:80", "LOCALHOST"])
def test_names_that_are_ours_are_answered(client: TestClient, host: str) -> None:
    """Addresses, and the machine itself."""
    assert client.get("/", headers={"host": host}).status_code == 200


def test_a_name_can_be_allowed() -> None:
    """For a proxy that passes its own on."""
    hosts = Hosts(["Gallery.Example.org"])
    assert hosts.knows("gallery.example.org:443")
    assert not hosts.knows("other.example.org")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": BASE},
    ],
)
def test_another_sites_page_can_post_nothing(
    client: TestClient, otters: str, store: JobStore, headers: dict[str, str]
) -> None:
    """Neither forms, which would carry the cookies, nor the API, which wants none here."""
    fields = {"form_token": form_token(client)}
    assert client.post(f"/submissions/{otters}/cancel", data=fields, headers=headers).status_code == 403
    assert client.post(f"/api/v1/submissions/{otters}/cancel", headers=headers).status_code == 403
    plain = headers | {"content-type": "text/plain"}
    assert client.post("/api/v1/submissions", content='{"prompts":["x"]}', headers=plain).status_code == 403
    assert store.find_submission(otters).state is SubmissionState.OPEN


def test_another_sites_page_can_embed_nothing(client: TestClient, otters: str) -> None:
    """But a link to a page can be followed."""
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert client.get(f"/submissions/{otters}/jobs/0/picture", headers=embedded).status_code == 403
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = client.get(f"/submissions/{otters}", headers=linked)
    assert answer.status_code == 200
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_form_without_its_token_does_nothing(
    client: TestClient, make_client: MakeClient, otters: str, store: JobStore
) -> None:
    """Nor one with a made-up token, nor with that of another browser."""
    another = form_token(make_client(rules()))
    form_token(client)
    for fields in ({}, {"form_token": "0" * 64}, {"form_token": another}):
        assert client.post(f"/submissions/{otters}/cancel", data=fields).status_code == 403
    assert store.find_submission(otters).state is SubmissionState.OPEN


def test_a_huge_body_is_refused_before_it_is_read(client: TestClient) -> None:
    """By what it says of its length, and where it says nothing by counting."""

    def endless() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * (MAX_BODY // 4)

    said = client.post("/api/v1/submissions", content=b"", headers={"content-length": str(10**9)})
    assert said.status_code == 413
    counted = client.post(
        "/v1/images/generations", content=endless(), headers={"content-type": "application/json"}
    )
    assert counted.status_code == 413
    assert MAX_UPLOAD > MAX_BODY


def test_too_many_requests_have_to_wait(make_client: MakeClient) -> None:
    """And are told how long."""
    client = make_client(rules(reading=RateLimit(rate=0.5, burst=2, clock=lambda: 0.0)))
    answers = [client.get("/static/app.css") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["retry-after"] == "2"


def test_a_bucket_is_refilled() -> None:
    """By the second, for each caller by itself."""
    now = 0.0
    bucket = RateLimit(rate=2, burst=1, clock=lambda: now)
    assert bucket.wait("a") == 0
    assert bucket.wait("a") == 0.5
    assert bucket.wait("b") == 0
    now = 0.5
    assert bucket.wait("a") == 0


@pytest.mark.parametrize(
    "path",
    [
        "/submissions/..%2f..%2fetc%2fpasswd",
        "/submissions/..%2f..%2fetc%2fpasswd/jobs/0/picture",
        "/submissions/otters/jobs/..%2f0/thumbnail",
        "/static/..%2f..%2fpyproject.toml",
        "/static/%2e%2e/app.py",
        "/api/v1/submissions/..%2f..%2fhome/jobs/0/image",
        "/submissions/%00/jobs/0",
        "/compare?left=../../etc/passwd:0&right=otters:0",
    ],
)
def test_a_path_in_a_path_leads_nowhere(client: TestClient, path: str) -> None:
    """There is no such submission, job or file; nothing is opened by what a request names."""
    assert client.get(path).status_code in (404, 422)


@pytest.mark.parametrize("column", ["init_image", "mask", "control_image"])
def test_a_prompt_cannot_name_a_file_of_this_machine(client: TestClient, tmp_path: Path, column: str) -> None:
    """Pictures that jobs begin with are named by the hash of what is in the store, and by nothing else."""
    Image.new("RGB", (64, 64)).save(tmp_path / "own.png")
    row = {"prompt": "an otter", column: str(tmp_path / "own.png")}
    answer = client.post("/api/v1/submissions", json={"prompts": [row]})
    assert answer.status_code == 422
    assert "only a picture in the store can be named here" in answer.text


def test_a_page_may_run_nothing_but_our_scripts(client: TestClient, otters: str) -> None:
    """The policy allows nothing inline, and no page needs it: no script, style or handler is in its text."""
    for path in (
        "/",
        f"/submissions/{otters}",
        f"/submissions/{otters}/jobs/0",
        "/submit",
        "/workers",
        "/login",
    ):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "no-store" in answer.headers["cache-control"]
        for inline in ("<style", " style=", "onclick=", "javascript:", "<script>"):
            assert inline not in answer.text


def test_beyond_this_machine_a_token_is_needed() -> None:
    """Before anything is opened, in one sentence, with exit code 2."""
    for host in ("0.0.0.0", "::", "192.168.1.7", "gallery.example.org"):  # noqa: S104  (what is refused)
        assert not is_loopback(host)
        with pytest.raises(BadInputError, match="--token-file"):
            rules_of(Listening(host=host, port=0))
    with pytest.raises(BadInputError, match=r"gallery\.example\.org.*--allow-host"):
        rules_of(Listening(host="127.0.0.1", port=0, allowed_hosts=("gallery.example.org",)))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"):
        assert rules_of(Listening(host=host, port=0)).token is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read /home/me/models/sd15/unet.safetensors: gone", "cannot read …/unet.safetensors: gone"),
        ("'/srv/pm/images/a b/x.png' is full", "'…/a b/x.png' is full"),
        ("database postgresql://me:secret@db:5432/jobs?password=hidden&x=1 is down",
         "database postgresql://db:5432/jobs is down"),
        ("database sqlite:////srv/pm/promptmill.db is full", "database sqlite://…/promptmill.db is full"),
        ("connection failed: password=hidden host=db", "connection failed: password=… host=db"),
        ("see https://me:pw@hub.example/a/b for more", "see https://hub.example/a/b for more"),
        ("5000 steps; choose 1 to 1000, and/or 3/4.", "5000 steps; choose 1 to 1000, and/or 3/4."),
        ("[Errno 13] Permission denied: '/var/lib/promptmill/x'", "[Errno 13] Permission denied: '…/x'"),
        ("cannot read:/home/me/x.png", "cannot read:…/x.png"),
        ("file:/home/me/x.png, 10:/2 and a://b/c/d", "file:…/x.png, 10:/2 and a://b/c/d"),
        ("no model_index.json in /srv/my models/sd15; see /srv/my models/sd15/unet/config.json",
         "no model_index.json in …/sd15; see …/unet/config.json"),
        ("database sqlite:////srv/my models/sd15/x.db is full", "database sqlite://…/x.db is full"),
        ("see https://hub.example/srv/pm/images/x", "see https://hub.example/srv/pm/images/x"),
    ],
)  # fmt: skip
def test_a_sentence_is_told_without_what_is_here(text: str, told: str) -> None:
    """Passwords go, of paths the last part stays, and nothing else changes."""
    assert discreet(text, [Path("/srv/pm/images"), Path("/srv/my models/sd15")]) == told


def test_the_folders_of_store_models_and_loras_are_told_to_nobody(tmp_path: Path) -> None:
    """Whatever they are called; hub repos and buckets are no folders, and what is no model ends nothing."""
    folder = tmp_path / "a b" / "sd15"
    checkpoint, lora = tmp_path / "c d" / "x.safetensors", tmp_path / "e f" / "style.safetensors"
    settings = Settings(
        home=tmp_path / "home", store_url=f"file://{tmp_path}/g h",
        models=[f"a={folder}", f"b={checkpoint}@stabilityai/sdxl", "c=owner/repo", "a b c"],
        loras=[f"style={lora}", "no lora"],
    )  # fmt: skip
    found = folders_of(settings)
    assert set(found) >= {folder, checkpoint.parent, lora.parent, tmp_path / "g h", settings.home}
    assert all(one.is_absolute() for one in found)
    assert Path("/") not in folders_of(Settings(home=tmp_path, store_url="/", models=["a=/x.safetensors"]))
    for path in (folder / "unet" / "x.json", checkpoint, lora, tmp_path / "g h" / "0.png"):
        told = discreet(f"Cannot read {path}; mend it.", found)
        assert not any(part in told for part in ("a b", "c d", "e f", "g h", str(tmp_path))), told
    assert Discretion(folders_of(Settings(home=tmp_path, store_url="s3://bucket"))).text("x") == "x"


def test_errors_say_nothing_of_this_machine(
    client: TestClient, otters: str, store: JobStore, settings: Settings, worker: StandInWorker
) -> None:
    """Neither a job's own nor the server's: tracebacks, paths and passwords are the command line's."""
    store.retry(otters)
    worker.start()
    (one,) = store.take_for_dispatch("demo", window=1)
    claim = store.claim(one, worker.incarnation, defaults=worker.defaults)
    assert isinstance(claim, Claim)
    told = f"Cannot read {settings.home}/models/x.safetensors; postgresql://me:sesame@db/jobs?password=tulip"
    trace = 'Traceback (most recent call last):\n  File "/opt/promptmill/render.py", line 1'
    store.fail(claim, error_type="RenderError", message=told, traceback=trace, permanent=True)
    store.pause(otters, note=f"{settings.images_path} is full")
    paths = ["/", f"/submissions/{otters}", f"/submissions/{otters}/jobs/{FAILED}"]
    paths += [f"/submissions/{otters}/cells?index={FAILED}", f"/submissions/{otters}/grid"]
    paths += [f"/api/v1/submissions/{otters}/jobs", f"/api/v1/submissions/{otters}/jobs/{FAILED}"]
    paths += ["/api/v1/submissions", f"/api/v1/submissions/{otters}"]
    for path in paths:
        text = client.get(path).text
        for hidden in ("sesame", "tulip", "Traceback", "/opt/", str(settings.home)):
            assert hidden not in text, path
    assert "…/models/x.safetensors" in client.get(paths[2]).text
    kept = store.find_job(f"{otters}:{FAILED}")
    assert (kept.error_message, kept.traceback) == (told, trace)


def test_a_sentence_of_the_stores_is_told_without_what_is_here(
    client: TestClient, store: JobStore, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the API and on pages."""

    def away(*_: object, **__: object) -> None:
        raise UnreachableError(
            f"The database {settings.database_path} cannot be used; see `promptmill doctor`."
        )

    monkeypatch.setattr(type(store), "newest", away)
    for accept in ("text/html", "application/json"):
        answer = client.get(
            "/" if accept == "text/html" else "/api/v1/submissions", headers={"accept": accept}
        )
        assert answer.status_code == 503
        assert "…/promptmill.db cannot be used" in answer.text
        assert str(settings.home) not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/", "/submissions/otters", "/submissions/otters/jobs/2/picture", "/static/app.css", "/nothing",
        "/submissions/otters/jobs/2/thumbnail", "/api/v1/workers", "/api/v1/submissions/otters/jobs/2/image",
    ],
)  # fmt: skip
def test_head_answers_as_get_does_without_the_body(client: TestClient, path: str) -> None:
    """The same status and headers, for whoever asks only for these."""
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("content-length", "content-type", "etag", "cache-control"):
        assert head.headers.get(name) == whole.headers.get(name)


def test_the_head_of_what_has_no_end_is_not_sent(client: TestClient, otters: str) -> None:
    """Or it would be followed for nobody."""
    assert client.head(f"/live?id={otters}").status_code == 405
    assert client.head(f"/api/v1/events?id={otters}").status_code == 405


def test_cookies_are_for_tls_alone_where_there_is_tls(app: FastAPI) -> None:
    """As a proxy says that is trusted; anybody else can say what he likes."""
    listening = Listening(host="127.0.0.1", port=0, proxies=("10.0.0.0/8",))
    config = config_of(app, listening)
    config.load()
    for proxy, scheme, secure in (
        ("10.0.0.9", "https", True),
        ("10.0.0.9", "http", False),
        ("192.168.0.9", "https", False),
    ):
        browser = TestClient(config.loaded_app, base_url=BASE, client=(proxy, 1))
        cookies = browser.get("/submit", headers={"x-forwarded-proto": scheme}).headers["set-cookie"]
        assert ("Secure" in cookies) is secure
    plain = config_of(app, Listening(host="127.0.0.1", port=0))
    plain.load()
    browser = TestClient(plain.loaded_app, base_url=BASE, client=("127.0.0.1", 1))
    assert (
        "Secure" not in browser.get("/submit", headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    )


def test_callers_behind_a_trusted_proxy_have_buckets_of_their_own(make_client: MakeClient) -> None:
    """One that asks without end does not shut the others out."""
    app = make_client(rules(reading=RateLimit(rate=1e-9, burst=1))).app
    config = config_of(app, Listening(host="127.0.0.1", port=0, proxies=("10.0.0.9",)))  # type: ignore[arg-type]
    config.load()
    proxy = TestClient(config.loaded_app, base_url=BASE, client=("10.0.0.9", 1))
    asked = [
        proxy.get("/workers", headers={"x-forwarded-for": one}).status_code
        for one in ("1.1.1.1", "1.1.1.1", "2.2.2.2")
    ]
    assert asked == [200, 429, 200]


def test_a_proxy_is_an_address_and_wants_a_token() -> None:
    """Whoever it lets in reaches everything."""
    with pytest.raises(BadInputError, match=r"--trust-proxy nginx is no address"):
        rules_of(Listening(host="127.0.0.1", port=0, proxies=("nginx",)))
    with pytest.raises(BadInputError, match="--token-file"):
        rules_of(Listening(host="127.0.0.1", port=0, proxies=("127.0.0.1",)))


def test_a_token_file_holds_a_token_or_its_hash(tmp_path: Path) -> None:
    """Either way only the hash is kept."""
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    token = read_token(file)
    assert token.fits(SECRET)
    assert not token.fits(SECRET[:-1])
    assert SECRET not in repr(vars(token))
    file.write_text(f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}")
    file.chmod(0o644)
    assert read_token(file).fits(SECRET)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"short", 0o600, "at least 20 characters"),
        (b"", 0o600, "at least 20 characters"),
        (b"two words that are long enough", 0o600, "one word"),
        (b"\xff\xfe" * 20, 0o600, "no text"),
        (SECRET.encode(), 0o644, "chmod 600"),
        (b"x" * 5000, 0o600, "no token"),
    ],
)
def test_a_token_file_that_is_unfit_is_refused(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    """One sentence that says what to do."""
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(BadInputError, match=said):
        read_token(file)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_token(tmp_path / "nothing")


def test_the_command_hands_over_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that was said; a folder `web` where the user stands is not taken for ours."""
    handed: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _path, words: handed.append(words))
    said = ["web", "--port", "0", "--allow-host", "a.example", "--allow-host", "b.example"]
    said += ["--trust-proxy", "127.0.0.1"]
    assert CliRunner().invoke(cli, said).exit_code == 0
    assert handed[0][1:5] == ["-P", "-m", "web", "serve"]
    listening = parse_listening(handed[0][5])
    assert listening == Listening(
        host="127.0.0.1", port=0, allowed_hosts=("a.example", "b.example"), proxies=("127.0.0.1",)
    )
    assert json.loads(handed[0][5])["token_file"] is None


def test_the_command_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to install it."""
    monkeypatch.setattr("producer.commands.web.find_spec", lambda _name: None)
    result = CliRunner().invoke(cli, ["web"], standalone_mode=False, obj=Session())
    assert isinstance(result.exception, BadInputError)
    assert "pip install 'promptmill[web]'" in str(result.exception)


def test_the_script_of_others_is_what_the_docs_say() -> None:
    """The very file that was published, with its licence beside it."""
    static = ROOT / "web" / "static"
    digest = hashlib.sha256((static / "htmx.min.js").read_bytes()).hexdigest()
    assert digest in (ROOT / "docs" / "web.md").read_text()
    assert "Zero-Clause BSD" in (static / "htmx.LICENSE").read_text()
