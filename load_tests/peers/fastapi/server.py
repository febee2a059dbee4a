"""FastAPI around ONNX Runtime, with a micro-batcher: whatever has come in while the graph ran is the next batch.

python -m load_tests.peers.fastapi.server BUNDLE PRECISION PORT CORES
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, Request, Response

from load_tests.peers.answering import answer, open_predictor, read_arguments, workers_and_threads
from serving.predictor import Predictor

MAX_BATCH = 32
GIVEN = "PEER_ARGUMENTS"
Waiting = tuple[bytes, asyncio.Future[bytes]]


async def answer_batches(waiting: asyncio.Queue[Waiting], predictor: Predictor, thread: ThreadPoolExecutor) -> None:
    """Answer what waits, batch after batch; decoding, graph and JSON in one thread, while the loop reads on."""
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        with suppress(asyncio.QueueEmpty):
            while len(batch) < MAX_BATCH:
                batch.append(waiting.get_nowait())
        try:
            bodies = await loop.run_in_executor(thread, answer, predictor, [image for image, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            continue
        for (_, future), body in zip(batch, bodies, strict=True):
            if not future.cancelled():
                future.set_result(body)


def make_app(predictor: Predictor) -> FastAPI:
    """The service."""
    waiting: asyncio.Queue[Waiting] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1) as thread:
            task = asyncio.create_task(answer_batches(waiting, predictor, thread))
            yield
            task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting.put_nowait((await request.body(), future))
        return Response(await future, media_type="application/json")

    return app


def main() -> None:
    """Serve until a signal comes."""
    _, _, port, cores = read_arguments()
    workers, _ = workers_and_threads(cores)
    os.environ[GIVEN] = "\n".join(sys.argv[1:])  # worker processes have another command line
    quick = {"loop": "uvloop", "http": "httptools", "access_log": False, "log_level": "warning"}
    uvicorn.run(f"{__spec__.name}:worker_app", factory=True, workers=workers, port=port, **quick)


def worker_app() -> FastAPI:
    """The service of one process."""
    bundle, precision, _, cores = read_arguments(os.environ[GIVEN].split("\n"))
    return make_app(open_predictor(bundle, precision, threads=workers_and_threads(cores)[1]))


if __name__ == "__main__":
    main()
