"""The handler inside TorchServe's own context, one batch at a time."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import Bundle, write_manifest
from serving.errors import BundleError
from serving.parameters import Options
from serving.predictor import Predictor
from serving.settings import WorkerSettings
from serving.torchserve.archive import model_config
from serving.torchserve.handler import ImageHandler


class Batch:
    """Requests as a worker hands them over, and what TorchServe would send back."""

    def __init__(self, model_dir: Path, *rows: dict[str, Any], content_types: dict[int, str] | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ts.context import Context, RequestProcessor
        config = model_config(WorkerSettings(batch_size=8, workers=1))
        self.context = Context("tiny-mda", str(model_dir), {}, 8, None, "0.12.0", model_yaml_config=config)
        types = content_types or {}
        headers = [{"body": {"content-type": types.get(n, "")}} for n in range(len(rows))]
        self.context.request_processor = [RequestProcessor(header) for header in headers]
        self.rows = rows

    def answers(self, handler: ImageHandler) -> list[tuple[int, Any]]:
        bodies = handler.handle(list(self.rows), self.context)
        assert all(self.context.get_response_content_type(n) == "application/json" for n in range(len(bodies)))
        return [(self.context.get_response_status(n)[0], json.loads(body)) for n, body in enumerate(bodies)]


@pytest.fixture
def handler(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ImageHandler:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)  # what initialize() sets is undone
    handler = ImageHandler()
    handler.initialize(Batch(bundle_dir).context)
    return handler


def test_one_batch_of_every_form(handler: ImageHandler, bundle_dir: Path, images: list[bytes]) -> None:
    batch = Batch(
        bundle_dir,
        {"body": bytearray(images[0])},
        {"body": bytearray(b"{")},
        {"data": bytearray(images[1]), "parameters": bytearray(b'{"top_k": 1}')},
        {"body": bytearray(b"text")},
        {"wrong": bytearray(b"")},
        {"body": bytearray(images[2])},
        content_types={1: "application/json"},
    )

    answers = batch.answers(handler)
    assert [status for status, _ in answers] == [200, 400, 200, 415, 400, 200]
    predictor = Predictor.open(bundle_dir)
    expected = predictor.predict_together([([image], Options()) for image in images[:3]])
    assert answers[0][1] == expected[0][0]
    assert answers[5][1] == expected[2][0]
    assert len(answers[2][1]["top_k"]) == 1


def test_the_phrase_goes_with_the_status(handler: ImageHandler, bundle_dir: Path) -> None:
    batch = Batch(bundle_dir, {"body": b"text"})
    batch.answers(handler)

    assert batch.context.get_response_status(0) == (415, "Unsupported Media Type")


def test_a_header_that_is_called_body_does_no_harm(
    handler: ImageHandler, bundle_dir: Path, images: list[bytes]
) -> None:
    batch = Batch(bundle_dir, {"body": images[0]})
    batch.context._request_processor[0]._request_header["body"] = "application/json"

    assert batch.answers(handler)[0][0] == 200


def test_a_tampered_model_is_not_loaded(make_bundle: Any) -> None:
    folder = make_bundle()
    (folder / "model.onnx").write_bytes(b"")

    with pytest.raises(BundleError, match=r"model\.onnx must have SHA-256 "):
        ImageHandler().initialize(Batch(folder).context)


def test_the_golden_answers_are_checked_before_the_worker_is_ready(bundle_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    manifest = Bundle.load(folder).manifest.model_dump(exclude={"sha256"})
    golden = dict(np.load(folder / "golden.npz"))
    (folder / "bundle.json").unlink()
    np.savez(folder / "golden.npz", **{**golden, "posterior": golden["posterior"][:, ::-1]})
    write_manifest(folder, **manifest)

    with pytest.raises(BundleError, match=r"^posterior must be within "):
        ImageHandler().initialize(Batch(folder).context)
