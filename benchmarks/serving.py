"""``serve`` under load, on loopback: against ``predict``, against one image at a time, and over many requests.

The server runs as a command in a process of its own; 32 clients in this process each keep one connection and send
the next image as soon as the last is answered, requests of one file as the page sends them. What the clients cost is
taken from the same two cores, and so counts against the server. The mean time of a batch is what the server itself
counts (``/metrics``), from the first image of a batch taken to its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.request import urlopen

import numpy as np

from benchmarks.made_images import photographs
from benchmarks.measure import Row, Settings, Side
from benchmarks.predicting import classifier
from scanprior import api
from scanprior.api.references import image_references

CLIENTS = 32
NETWORK, SIZE = "tf_efficientnet_lite0", 128


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        rate: images/s.
        latencies: seconds of each request, sorted.
    """

    rate: float
    latencies: list[float]

    @property
    def p99(self) -> float:
        """Seconds within which 99 % of the requests were answered."""
        return self.latencies[min(len(self.latencies) - 1, int(0.99 * len(self.latencies)))]


def run(settings: Settings) -> list[Row]:
    """Measure throughput, latency, batching and memory."""
    folder, what = photographs(settings.folder / "serving", settings.of(512, 24))
    network, size = ("test_convnext.r160_in1k", 32) if settings.quick else (NETWORK, SIZE)
    run = classifier(settings.folder / "serving-run", folder, network, size)
    references = image_references(folder)
    requests = [_request(Path(reference).read_bytes()) for reference in references]
    served, single, predicted, ratios = [], [], [], []
    with _server(run.path) as (port, pid), _server(run.path, "--batch-size", "1") as (slow_port, _):
        for number in range(settings.repeats + 1):
            began = _batches(port)
            load, slow = _load(port, requests), _load(slow_port, requests)
            ended = _batches(port)
            begun = time.perf_counter()
            api.predict(run.path, references)
            spent = time.perf_counter() - begun
            if number:
                served.append(load.rate)
                single.append(slow.rate)
                predicted.append(len(references) / spent)
                ratios.append(load.p99 / ((ended[0] - began[0]) / (ended[1] - began[1])))
        memory = _memory(port, pid, requests, settings.of(1_000, 48), settings.of(10_000, 96))
    name = f"serve {network}, {size} px, {CLIENTS} clients"
    server = Side("serve", "images/s", served)
    batching = [a / b for a, b in zip(served, single, strict=True)]
    against = [a / b for a, b in zip(served, predicted, strict=True)]
    return [
        Row(f"{name}: throughput", median(against), target=0.8, ours=server,
            reference=Side("predict of the same files", "images/s", predicted),
            spread=(min(against), max(against)), note=f"{what}; the clients run on the same cores"),
        Row(f"{name}: batching", median(batching), target=2, ours=server,
            reference=Side("--batch-size 1", "images/s", single), spread=(min(batching), max(batching))),
        Row(f"{name}: p99 latency over the mean time of a batch", median(ratios), target=3, sense="<=",
            spread=(min(ratios), max(ratios))),
        memory,
    ]  # fmt: skip


@contextlib.contextmanager
def _server(run: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Start the command; give the port and the process once it answers."""
    command = [sys.executable, "-m", "scanprior", "serve", str(run), "--port", "0", *options]
    quiet = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
                break
        else:
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        _wait_for(port)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health"):
            return
        time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def _request(image: bytes) -> bytes:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="image.jpg"\r\n\r\n'
        + image
        + b"\r\n--x--\r\n"
    )
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _load(port: int, requests: Sequence[bytes]) -> Load:
    return asyncio.run(_clients(port, requests))


async def _clients(port: int, requests: Sequence[bytes]) -> Load:
    waiting, taken = list(reversed(requests)), []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while waiting:
            request, begun = waiting.pop(), time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if b" 200 " not in head[:20] or length is None:
                raise RuntimeError(f"the server answered {head[:60]!r}")
            await reader.readexactly(int(length[1]))
            taken.append(time.perf_counter() - begun)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return Load(len(requests) / (time.perf_counter() - begun), sorted(taken))


def _batches(port: int) -> tuple[float, float]:
    """Return the seconds and the number of the batches that the server has computed."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    sums = [
        sum(
            float(value) for value in re.findall(rf"^scanprior_batch_seconds_{name}{{.*}} (\S+)$", text, re.M)
        )
        for name in ("sum", "count")
    ]
    return sums[0], sums[1]


def _memory(port: int, pid: int, requests: Sequence[bytes], warm: int, count: int) -> Row:
    """Compare the resident memory of the server and its decoders before and after many requests."""
    repeated = [requests[n % len(requests)] for n in range(count)]
    _load(port, repeated[:warm])
    before = _resident_mb(pid)
    _load(port, repeated)
    after = _resident_mb(pid)
    return Row(
        f"serve: memory after {count:,} further requests", after / before, target=1.05, sense="<=",
        ours=Side(f"after {count:,}", "MB", [after]), reference=Side(f"after {warm:,}", "MB", [before]),
        note="server and decoders together",
    )  # fmt: skip


def _resident_mb(pid: int) -> float:
    """Return the resident memory of a process and of those it started, in MB."""
    tree, found = [pid], 0
    for process in tree:
        for thread in Path(f"/proc/{process}/task").iterdir():
            tree += map(int, (thread / "children").read_text().split())
        found += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return float(np.round(found * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
