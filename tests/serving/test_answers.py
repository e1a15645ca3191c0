"""The server says what ``predict`` and ``explain`` say, in the form it describes."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from data import made_dicom
from scanprior import api
from scanprior.engine import Reporter
from scanprior.run import Run
from scanprior.serving import schema
from scanprior.serving import server as server_module
from scanprior.serving.server import listen, open_all
from serving.conftest import Server


def test_predictions_are_those_of_predict(server: Server, classifier: Run, images: list[Path]) -> None:
    chosen = images[:7]
    response = server.post("/predict", *chosen, similar=3)
    assert response.status_code == 200
    said = schema.Predictions.model_validate(response.json())
    table = api.predict(classifier.path, chosen)
    assert [result.file for result in said.results] == list(range(7))
    for result, (_, row) in zip(said.results, table.iterrows(), strict=True):
        assert result.error is None and result.probabilities and result.calibrated and result.outlier
        for name, value in result.probabilities.items():
            assert value == pytest.approx(row[f"prob:{name}"], abs=1e-6)
            assert result.calibrated[name] == pytest.approx(row[f"calibrated:{name}"], abs=1e-6)
        assert result.predicted == row["predicted"]
        assert "|".join(result.conformal_set or []) == row["conformal_set"]
        assert result.outlier.score == pytest.approx(row["outlier_score"], rel=1e-4)
        assert result.outlier.flagged == row["outlier"]
        assert (result.height, result.width) == (48, 48)
        assert result.similar is not None and len(result.similar) == 3
        assert result.similar[0].similarity >= result.similar[1].similarity
        thumbnail = (result.similar[0].thumbnail or "").removeprefix("data:image/jpeg;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(thumbnail))).size == (32, 32)
    assert said.fingerprint == classifier.card_fingerprint() and "Research use only" in said.notice


def test_answers_do_not_wait_for_the_other_side_to_acknowledge() -> None:
    """Else the body of an answer, sent after its head, waits for some forty milliseconds."""
    found = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def asked() -> None:
        with listen("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(answer, sock=listening) as server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                await reader.read()
                writer.close()

    asyncio.run(asked())
    assert found and found[0]


def test_loading_starts_no_threads_that_computing_would_wait_for(
    classifier: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(server_module, "open_served", lambda path, name: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        assert list(open_all([classifier.path, classifier.path], Reporter())) == ["chest", "chest-2"]
        assert seen == [1, 1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_operating_point_is_that_of_the_evaluation(server: Server, images: list[Path]) -> None:
    about = schema.Model.model_validate(server.client.get("/models").json()[0])
    (name,) = about.operating_points  # two classes: of the positive one alone
    point = about.operating_points[name]["value"]
    for result in server.post("/predict", *images[:20]).json()["results"]:
        assert result["above_operating_point"] == {name: result["probabilities"][name] >= point}


def test_a_bad_file_among_good_ones_has_its_own_error(server: Server, images: list[Path]) -> None:
    response = server.post("/predict", images[0], ("x.png", b"no image at all"), images[1])
    assert response.status_code == 200
    errors = [result["error"] for result in response.json()["results"]]
    assert errors == [None, "the content is text", None]
    alone = server.post("/predict", ("x.png", b"no image at all"))
    assert alone.status_code == 422 and alone.json()["detail"] == "the content is text"
    schema.Predictions.model_validate(alone.json())
    assert server.post("/predict", ("x.png", b"no image at all"), each=True).status_code == 200


def test_masks_are_those_of_predict(
    server: Server, segmenter: Run, images: list[Path], tmp_path: Path
) -> None:
    said = schema.Predictions.model_validate(server.post("/predict", *images[:3], model="lungs").json())
    table = api.predict(segmenter.path, images[:3], out=tmp_path / "out")
    for result, (_, row) in zip(said.results, table.iterrows(), strict=True):
        assert result.masks is not None
        (mask,) = result.masks.values()
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask.png))))
        np.testing.assert_array_equal(drawn, np.asarray(Image.open(tmp_path / "out" / row["mask"])) > 0)
        assert mask.pixels == row["area:foreground"] == drawn.sum()
    refused = server.post("/explain", images[0], model="lungs")
    assert refused.status_code == 422 and "/predict" in refused.json()["detail"]


def test_masks_of_full_size_hold_nobody_up(
    server: Server, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn outside the network's thread, and one that fails does so for itself alone."""
    places = []

    def slow(*arguments: object) -> dict[str, object]:
        places.append(threading.current_thread().name)
        raise MemoryError

    monkeypatch.setattr("scanprior.serving.served.predicted_masks", slow)
    refused = server.post("/predict", images[0], model="lungs")
    assert refused.status_code == 422 and refused.json()["detail"] == "the network failed on this image"
    assert places and not places[0].startswith("network")


def test_explanations_are_those_of_explain(
    server: Server, classifier: Run, images: list[Path], tmp_path: Path
) -> None:
    response = server.post("/explain", images[0], **{"class": "normal"})
    said = schema.Explanations.model_validate(response.json()).results[0]
    table = api.explain(classifier.path, images[0], out=tmp_path, classes="normal", arrays=True)
    expected = np.load(tmp_path / table.loc[0, "array"])
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(said.saliency_png or ""))))
    np.testing.assert_array_equal(drawn, np.rint(expected * 255))
    assert said.class_name == "normal" and said.probability == pytest.approx(table.loc[0, "prob"], abs=1e-6)
    for wrong in ({"class": "cat"}, {"method": "gradcam"}, {"frame": -1}, {"frame": "x"}):
        refused = server.post("/explain", images[0], **wrong)
        assert refused.status_code == 422 and refused.json()["detail"], wrong


def test_predictions_meanwhile_disturb_no_explanation(server: Server, images: list[Path]) -> None:
    alone = server.post("/explain", images[0]).json()["results"][0]
    single = [server.post("/predict", image).json()["results"][0]["probabilities"] for image in images[:6]]
    with ThreadPoolExecutor(8) as senders:
        explained = [senders.submit(server.post, "/explain", images[0]) for _ in range(4)]
        predicted = [senders.submit(server.post, "/predict", images[n % 6]) for n in range(60)]
    for answer in explained:
        assert answer.result().json()["results"][0]["saliency_png"] == alone["saliency_png"]
    for n, answer in enumerate(predicted):
        assert answer.result().json()["results"][0]["probabilities"] == pytest.approx(single[n % 6], abs=1e-5)


def test_frames_of_a_file(server: Server, tmp_path: Path) -> None:
    stack = np.stack([made_dicom.grey_values(8), 255 - made_dicom.grey_values(8)])
    file = made_dicom.save(made_dicom.dataset(stack, frames=2), tmp_path / "x.dcm")
    first, second = (server.post("/predict", file, frame=n).json()["results"][0] for n in (0, 1))
    assert first["frames"] == second["frames"] == 2
    assert first["probabilities"] != second["probabilities"]
    assert server.post("/predict", file, frame=2).status_code == 422


def test_a_picture_keeps_its_bits(server: Server) -> None:
    values = made_dicom.grey_values(16)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    response = server.post("/image", ("x.png", stream.getvalue()))
    shape = [int(response.headers[f"x-{name}"]) for name in ("height", "width", "channels")]
    np.testing.assert_array_equal(np.frombuffer(response.content, "<u2").reshape(shape)[..., 0], values)
    assert response.headers["x-bits"] == "16"


def test_a_large_picture_is_made_smaller(server: Server) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((300, 3000, 3), (255, 0, 128), np.uint8)).save(stream, "PNG")
    response = server.post("/image", ("x.png", stream.getvalue()))
    assert (response.headers["x-width"], response.headers["x-height"]) == ("1024", "102")
    pixels = np.frombuffer(response.content, "<u2").reshape(102, 1024, 3)
    assert (pixels == np.array([65535, 0, 128 * 257])).all()


def test_what_is_told_of_models(server: Server, classifier: Run) -> None:
    models = [schema.Model.model_validate(each) for each in server.client.get("/models").json()]
    assert [model.name for model in models] == ["chest", "lungs"]
    assert [model.kind for model in models] == ["multiclass", "segmentation"]
    card = server.client.get("/models/chest/card")
    assert card.text.startswith("# chest") and card.headers["content-type"].startswith("text/markdown")
    page = server.client.get("/models/chest/card.html").text
    assert "<h1>chest</h1>" in page and "<table>" in page and "Research use only" in page
    for path in ("/models/none/card", "/models/none/card.html", "/page/none.js", "/none"):
        assert server.client.get(path).status_code == 404
    refused = server.post("/predict", ("x.png", b"x"), model="none")
    assert refused.status_code == 404 and "chest, lungs" in refused.json()["detail"]


def test_requests_are_counted(server: Server, images: list[Path]) -> None:
    def count(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(server.client.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    before = count("scanprior_images_total", model="chest", result="answered")
    server.post("/predict", *images[:5])
    assert count("scanprior_images_total", model="chest", result="answered") == before + 5
    assert count("scanprior_requests_total", route="/predict", status="200") >= 1
    assert count("scanprior_batch_size_sum", model="chest") >= 5
    assert count("scanprior_images_waiting") == 0
    assert server.client.get("/patient-jane-doe").status_code == 404
    assert "jane" not in server.client.get("/metrics").text


def test_the_interface_is_described(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/image", "/models", "/health", "/metrics"} <= described["paths"].keys()
    body = described["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert body["schema"]["required"] == ["files"]
    docs = server.client.get("/docs")
    assert "http" not in docs.text  # nothing from elsewhere
    assert server.client.get("/page/swagger-ui-bundle.js").status_code == 200


def test_runs_and_reports(server: Server, classifier: Run) -> None:
    api.report(classifier.path)
    told = server.client.get("/runs").json()
    assert [run["path"] for run in told["runs"]] == ["chest"] and told["folder"]
    report = server.client.get("/runs/report", params={"path": "chest"})
    assert report.content == (classifier.path / "report.html").read_bytes()
    assert "script-src" not in report.headers["content-security-policy"]
    for path in ("../chest", "chest/../chest", "/etc/passwd", "chest/", "", "chest\0"):
        assert server.client.get("/runs/report", params={"path": path}).status_code == 404, path
