"""Whatever is sent, the answer is a clear 4xx, nothing is kept, and the server goes on."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from data import bad_files, made_dicom
from scanprior.api.reading import Reading
from scanprior.data.readers import Upload
from scanprior.errors import ConfigError, DataError, RunError
from scanprior.run import Run
from scanprior.serving import serve
from scanprior.serving.decoding import Decoders
from scanprior.serving.limits import Limits
from serving.conftest import TOKEN, Server, listening

FUZZED = int(os.environ.get("SCANPRIOR_FUZZED", "200"))
"""Requests of the fuzz test."""

STRICT = Limits(
    upload_mb=1, files=4, pixels=100_000, upload_seconds=1, read_seconds=5, images_waiting=6, memory_mb=3
)


@pytest.fixture(scope="module")
def strict(classifier: Run) -> Iterator[Server]:
    with listening([classifier.path], STRICT) as running:
        yield running


def test_every_bad_file_is_refused(server: Server, tmp_path: Path) -> None:
    """With the same words as elsewhere, but for those of a library, which may quote the header."""
    paths = [path for path in bad_files.make_bad_files(tmp_path, seed=7) if path.is_file()]
    assert len(paths) > 190
    with ThreadPoolExecutor(4) as senders:
        for path, response in zip(
            paths, senders.map(lambda p: server.post("/predict", p), paths), strict=True
        ):
            assert response.status_code == 422, (path.name, response.text)
            detail = response.json()["detail"]
            assert detail and "\n" not in detail and "Traceback" not in detail, path.name
            assert str(tmp_path) not in detail, path.name
    for path in paths[::20]:
        for route in ("/explain", "/image"):
            assert server.post(route, path).status_code == 422, path.name
    assert server.alive()


def test_planted_identities_come_back_nowhere(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    planted = {
        "Modality": "PLANTED",
        "PhotometricInterpretation": "PLANTED^X 1970",
        "VOILUTFunction": "PLANTED",
    }
    files = [data for name, data in bad_files.good_files(seed=7).items() if name.endswith(".dcm")]
    files += [data[:-9] for data in files]
    for keyword, value in planted.items():
        window = {"WindowCenter": 100, "WindowWidth": 50}
        made = made_dicom.dataset(made_dicom.grey_values(8), **{**window, keyword: value})
        if keyword == "Modality":
            del made.PixelData
        files.append(made_dicom.save(made, tmp_path / "x.dcm").read_bytes())
    details = []
    caplog.clear()  # what was said while the files were made
    capfd.readouterr()
    for content in files:
        response = server.post("/predict", ("Doe-Jane-1970.dcm", content))
        shown = capfd.readouterr()
        said = response.text + str(response.headers) + caplog.text + shown.out + shown.err
        assert "PLANTED" not in said.upper() and "Doe" not in said
        details.append(response.json().get("detail"))
    assert details[-3:] == [
        "no pixel data found: truncated, or not an image",
        "PhotometricInterpretation is not supported",
        "VOILUTFunction is not LINEAR, LINEAR_EXACT or SIGMOID",
    ]


def test_fuzzed_bodies(server: Server, images: list[Path]) -> None:
    good = httpx.Request("POST", "http://x/", files=[("files", ("a.png", images[0].read_bytes()))])
    body, kind = good.read(), good.headers["content-type"]
    statuses = set()
    for seed in range(FUZZED):
        chance = random.Random(seed)
        sent = _damaged(bytearray(body), chance)
        header = kind if seed % 5 else _damaged_text(kind, chance)
        route = chance.choice(["/predict", "/predict", "/image", "/explain"])
        response = server.client.post(route, content=sent, headers={"content-type": header})
        assert response.status_code < 500, (seed, response.text)
        if response.status_code != 200 or route != "/image":
            assert response.json(), seed
        statuses.add(response.status_code)
    assert server.alive() and {200, 400, 415, 422} <= statuses


def _damaged(body: bytearray, chance: random.Random) -> bytes:
    """Change, cut, repeat or insert bytes, mostly near the head of the form."""
    for _ in range(chance.choice([1, 2, 8])):
        place = chance.randrange(min(len(body), 200) if chance.random() < 0.7 else len(body))
        match chance.randrange(4):
            case 0:
                body[place] = chance.randrange(256)
            case 1:
                del body[place : place + chance.randrange(1, 40)]
            case 2:
                body[place:place] = chance.randbytes(chance.randrange(1, 40))
            case _:
                body[place:place] = body[place : place + chance.randrange(1, 200)]
        if not body:
            break
    return bytes(body)


def _png(width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((9, width), 100, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _damaged_text(text: str, chance: random.Random) -> str:
    letters = list(text)
    for _ in range(chance.choice([1, 3])):
        letters[chance.randrange(len(letters))] = chr(chance.randrange(32, 127))
    return "".join(letters).strip() or "x"


def test_wrong_content_types(server: Server) -> None:
    for kind in (
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/mixed",
        "",
    ):
        response = server.client.post("/predict", content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415 and "multipart/form-data" in response.json()["detail"]
    assert server.client.post("/predict").status_code == 415
    nameless = {"content-type": "multipart/form-data"}
    assert server.client.post("/predict", content=b"x", headers=nameless).status_code == 400
    assert server.client.post("/predict", data={"files": "text"}, files={"x": b""}).status_code == 422
    assert server.client.get("/predict").status_code == 405
    assert server.client.request("PATCH", "/models").status_code == 405


def test_too_much_of_everything(strict: Server, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanprior.serving.server._HEAD_SECONDS", 1)
    announced = strict.post("/predict", ("x.png", bytes(1_000_001)))
    assert announced.status_code == 413 and "1 MB" in announced.json()["detail"]
    many = strict.post("/predict", *images[:5])
    assert many.status_code == 413 and "4 files" in many.json()["detail"]
    boundary = {"content-type": "multipart/form-data; boundary=x"}

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        while True:
            yield bytes(100_000)

    with suppress(
        httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError
    ):  # it hangs up on whoever does not even listen
        assert strict.client.post("/predict", content=endless(), headers=boundary).status_code == 413
    fields = b"".join(b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(5000))
    response = strict.client.post("/predict", content=fields + b"--x--\r\n", headers=boundary)
    assert response.status_code == 400
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + b"a" * 500_000
    assert strict.client.post("/predict", content=head, headers=boundary).status_code == 400
    wide = strict.post("/predict", ("x.png", bad_files._png(400, 300)))
    assert wide.status_code == 422 and "100000" in wide.json()["detail"]
    assert strict.alive()


def test_a_decompression_bomb(server: Server) -> None:
    """A megabyte that would be a gigabyte, and one within the allowed pixels that decodes slowly at worst."""
    rows = zlib.compress(bytes(30_001 * 30_000), 9)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + bad_files._chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
        + bad_files._chunk(b"IDAT", rows)
        + bad_files._chunk(b"IEND", b"")
    )
    begun = time.monotonic()
    response = server.post("/predict", ("x.png", bomb))
    assert response.status_code == 422 and "limit" in response.json()["detail"]
    deflated = server.post("/predict", ("x.dcm", bad_files._deflate_bomb()))
    assert deflated.status_code == 422
    assert time.monotonic() - begun < 30 and server.alive()


def test_slow_and_cut_off_uploads(strict: Server, images: list[Path]) -> None:
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 5000\r\n\r\n--x\r\n"
    )
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as slow:
        slow.sendall(head)
        assert b" 408 " in slow.recv(4096)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as cut:
            cut.sendall(head)
    answered = [strict.post("/predict", image).status_code for image in images[:3]]
    assert answered == [200, 200, 200] and strict.alive()
    deadline = time.monotonic() + 5
    while strict.service.desk.held and time.monotonic() < deadline:
        time.sleep(0.05)
    assert strict.service.desk.held == 0


def test_heads_that_never_end(strict: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanprior.serving.server._HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert slow.recv(100) == b""
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as wrong:
        wrong.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert b" 400 " in wrong.recv(4096)
    assert strict.alive()


def test_more_connections_than_there_is_room_for(
    strict: Server, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many is told so at once; those that were let in are answered, and leave their place to others."""
    monkeypatch.setattr("scanprior.serving.server._CONNECTIONS", 4)
    place = ("127.0.0.1", strict.port)
    with ExitStack() as stack:
        inside = [stack.enter_context(socket.create_connection(place, timeout=20)) for _ in range(4)]
        told = b""
        for _ in range(50):  # the last of the four may not have been taken up yet
            with socket.create_connection(place, timeout=20) as outside:
                outside.settimeout(1)
                with suppress(TimeoutError):
                    told = outside.recv(4096)
            if told:
                break
        assert told.startswith(b"HTTP/1.1 429 ")
        head, body = told.split(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head and "too many" in json.loads(body)["detail"]
        inside[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert inside[0].recv(100).startswith(b"HTTP/1.1 200 ")
    monkeypatch.undo()
    assert strict.post("/predict", images[0]).status_code == 200


def test_many_at_a_time(strict: Server, images: list[Path]) -> None:
    """More than there is room for are told to come again; the others are answered."""
    with ThreadPoolExecutor(24) as senders:
        responses = list(senders.map(lambda n: strict.post("/predict", *images[n : n + 4]), range(24)))
    statuses = {response.status_code for response in responses}
    assert statuses <= {200, 429} and 200 in statuses
    for response in responses:
        if response.status_code == 429:
            assert response.headers["retry-after"] and "try again" in response.json()["detail"]
    assert strict.post("/predict", images[0]).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "<img src=x onerror=alert(1)>.png",
        "a\0b.png",
        "a" * 3000,
        "‮gnp.exe",
        "",
    ],
)
def test_names_of_files_mean_nothing(server: Server, images: list[Path], name: str) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=xx"}
    head = b'--xx\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
    body = head + images[0].read_bytes() + b"\r\n--xx--\r\n"
    response = server.client.post("/predict", content=body, headers=boundary)
    assert response.status_code == 200
    assert not name or name not in response.text


def test_a_decoder_that_is_stuck_or_dies(images: list[Path]) -> None:
    """Only the file that did it suffers; also where the process dies with nothing to do."""
    upload = Upload(images[0].read_bytes(), "x.png")

    async def tried() -> list[str | None]:
        decoders = Decoders(1, 10**6, 0.5)
        await decoders.start()
        stuck = decoders._pool.schedule(time.sleep, args=[60], timeout=0.5)
        found = [(await decoders.read(upload, {})).error]
        with pytest.raises(TimeoutError):
            stuck.result()
        decoders.seconds = 30
        dying = decoders._pool.schedule(signal.raise_signal, args=[signal.SIGKILL])
        found.append((await decoders.read(upload, {})).error)
        assert dying.exception() is not None
        idle = decoders._pool.schedule(os.getpid).result()
        os.kill(idle, signal.SIGKILL)
        await asyncio.sleep(0.5)
        found += [(await decoders.read(upload, {})).error for _ in range(3)]
        decoders.close()
        return found

    found = asyncio.run(tried())
    assert found[:2] == [None, None] and found[-1] is None
    assert found[2] is None or "decoder stopped" in found[2]


def test_a_file_is_not_charged_for_those_before_it(images: list[Path]) -> None:
    """A process is given the next file before it is done with one; a time limit is of each by itself."""
    upload = Upload(images[0].read_bytes(), "x.png")

    async def tried() -> list[str | None]:
        decoders = Decoders(1, 10**6, 0.6)
        await decoders.start()
        before = [decoders._pool.schedule(time.sleep, args=[0.4], timeout=0.6) for _ in range(2)]
        found = [one.error for one in await asyncio.gather(*(decoders.read(upload, {}) for _ in range(8)))]
        assert [one.result() for one in before] == [None, None]
        decoders.close()
        return found

    assert asyncio.run(tried()) == [None] * 8


def test_one_image_that_the_network_fails_on_fails_alone(
    server: Server, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = server.service._batches["chest"]
    compute = batches._compute

    def failing(readings: list[Reading]) -> object:
        if any(reading.width == 7 for reading in readings):
            raise MemoryError("of a batch")
        return compute(readings)

    monkeypatch.setattr(batches, "_compute", failing)
    files = [*images[:5], ("odd.png", _png(7)), *images[5:9]]
    results = server.post("/predict", *files).json()["results"]
    errors = [result["error"] for result in results]
    assert errors == [None] * 5 + ["the network failed on this image"] + [None] * 4
    monkeypatch.undo()
    assert server.post("/predict", *images[:3]).status_code == 200


def test_forms_that_are_not_quite_forms(server: Server, images: list[Path]) -> None:
    one = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    one += images[0].read_bytes() + b"\r\n"
    kind = "multipart/form-data; boundary=x"
    for body in (one, one + one, one + one[:200]):
        response = server.client.post("/predict", content=body, headers={"content-type": kind})
        assert response.status_code == 400 and response.json()["detail"]
    for charset in ("undefined", "punycode", "idna", "nonsense"):
        headers = {"content-type": f"{kind}; charset={charset}"}
        response = server.client.post("/predict", content=one + b"--x--\r\n", headers=headers)
        assert response.status_code in (200, 400), charset


def test_the_token(classifier: Run, images: list[Path]) -> None:
    with listening([classifier.path], token=TOKEN) as server:
        for path in ("/", "/health", "/page/page.js", "/session"):
            assert server.client.get(path).status_code == 200, path
        assert server.client.get("/session").json()["entered"] is False
        for path in ("/models", "/metrics", "/runs", "/models/chest/card", "/openapi.json", "/docs", "/none"):
            refused = server.client.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer", path
        for wrong in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é".encode()):
            headers = {"authorization": wrong}
            assert server.client.post("/predict", headers=headers).status_code == 401
            assert server.client.post("/session", headers=headers).status_code == 401
        right = {"authorization": f"Bearer {TOKEN}"}
        sent = {"files": images[0].read_bytes()}
        assert server.client.post("/predict", files=sent, headers=right).status_code == 200
        entered = server.client.post("/session", headers=right)
        cookie = entered.headers["set-cookie"]
        assert entered.status_code == 204 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert server.client.get("/models").status_code == 200  # by the cookie
        assert server.client.get("/session").json()["entered"] is True
        server.client.cookies.clear()
        assert (
            server.client.get("/models", headers={"cookie": f"scanprior-{server.port}=0"}).status_code == 401
        )


def test_other_names_for_this_machine(server: Server) -> None:
    """A page of another site whose name leads here is not let in."""
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1", "[::2]"):
        assert server.client.get("/models", headers={"host": host}).status_code == 421, host
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
        assert server.client.get("/models", headers={"host": host}).status_code == 200, host
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 415), ("none", 415)):
        assert server.client.post("/predict", headers={"sec-fetch-site": site}).status_code == status, site
    page = server.client.get("/", headers={"sec-fetch-site": "cross-site"})
    assert page.status_code == 200  # a link may lead here
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"https?://", page.text)
    assert "access-control-allow-origin" not in page.headers


def test_nothing_is_written(
    server: Server, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rolled: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = images[0].read_bytes() + bytes(3_000_000)
    for route in ("/predict", "/explain", "/image"):
        server.post(route, ("x.png", large))
    assert not rolled and not list(tmp_path.iterdir())


def test_a_stop_waits_for_requests_under_way(classifier: Run, images: list[Path]) -> None:
    answers: list[int] = []
    with listening([classifier.path]) as server:
        client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)
        files = [("files", (path.name, path.read_bytes())) for path in images[:40]]
        sender = threading.Thread(
            target=lambda: answers.append(client.post("/predict", files=files).status_code)
        )
        sender.start()
        deadline = time.monotonic() + 20
        while not server.service._waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        assert server.service._waiting
    sender.join(60)
    assert answers == [200]


def test_a_signal_ends_the_command(
    classifier: Run, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    program = (
        "import os\nfrom scanprior.cli import main\n"
        "try: main()\nfinally: print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'], 'kernels')"
    )
    command = [sys.executable, "-c", program, "serve", str(classifier.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"serving on (http://127\.0\.0\.1:\d+)", line):
                break
        assert found, said
        files = {"files": ("Doe.png", images[0].read_bytes())}
        assert httpx.post(f"{found[1]}/predict", files=files, timeout=60).status_code == 200
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest.splitlines()[-2:] == ["stopped", "256 kernels"]
    assert "POST /predict 200" in rest and "Doe" not in rest and "Traceback" not in rest


def test_what_is_no_number_is_no_answer(
    server: Server, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN; the image is named, and the server goes on."""
    predictor = server.service.served["chest"].predictor  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(predictor, "combined", lambda members: np.full((members.shape[1], 2), np.nan))
        response = server.post("/predict", images[0])
    assert response.status_code == 422 and response.json()["detail"] == "the network failed on this image"
    with monkeypatch.context() as patch:
        patch.setattr(server.service.served["chest"].explainer, "explain", lambda *_: 1 / 0)
        assert server.post("/explain", images[0]).status_code == 422
    assert server.post("/predict", images[0]).status_code == 200


def test_an_idle_sender_holds_nothing(strict: Server, images: list[Path]) -> None:
    """Only what has come counts, so that announcements keep nobody else out."""
    head = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 900000\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(10):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", strict.port), timeout=20))
            idle.sendall(head)
        assert strict.post("/predict", images[0]).status_code == 200


def test_what_serve_refuses(classifier: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCANPRIOR_TOKEN", raising=False)
    run = classifier.path
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0: .* needs a token"):
        serve(run, host="0.0.0.0")
    monkeypatch.setenv("SCANPRIOR_TOKEN", "short")
    with pytest.raises(ConfigError, match="5 characters"):
        serve(run, host="0.0.0.0")
    monkeypatch.delenv("SCANPRIOR_TOKEN")
    with pytest.raises(ConfigError, match="--workers 0"):
        serve(run, workers=0)
    with pytest.raises(ConfigError, match=r"--certificate .*none.pem"):
        serve(run, certificate=tmp_path / "none.pem", key=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="--files 600"):
        Limits(files=600)
    with pytest.raises(ConfigError, match="belong together"):
        serve(run, certificate="x.pem")
    with pytest.raises(DataError, match="no such folder"):
        serve(run, folder=tmp_path / "none")
    with pytest.raises(RunError):
        serve(tmp_path)
    with pytest.raises(ConfigError, match="no run"):
        serve([])
    with pytest.raises(ConfigError, match="--upload-mb 0"):
        Limits(upload_mb=0)
    with pytest.raises(ConfigError, match="--pixels"):
        Limits(pixels=10**12)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DataError, match="in use"):
            serve(run, port=taken.getsockname()[1])
