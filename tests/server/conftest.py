"""A tiny checkpoint, served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from running_server import CONTEXT, KEY, ORIGIN, Server, checkpoint_with_chat, serving
from skipgpt.checkpoint.loading import load
from skipgpt.serving.app import build_app
from skipgpt.serving.engine import Engine
from skipgpt.serving.metrics import Metrics


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_with_chat(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Any:
    return load(folder, merge=True)


@pytest.fixture(scope="module")
def client(loaded: Any) -> Iterator[Any]:
    """The application with an allowed origin, in this process."""
    from fastapi.testclient import TestClient

    metrics = Metrics()
    engine = Engine(*loaded, metrics)
    app = build_app(engine, "tiny", metrics, context=CONTEXT, api_key=KEY, allowed_origins=[ORIGIN])
    with TestClient(app) as client:
        yield client
    engine.close()
