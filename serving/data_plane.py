"""The data plane: requests in any transport's shape → replies, without any server in it.

    plane = DataPlane(predictor)
    [reply] = plane.answer([Message(body=image)])
    send(reply.status, reply.content_type, reply.body)

A server makes a `Message` of what has arrived and sends the `Reply`; all between the two is here. One whose requests
are not bytes to read and whose replies are not JSON makes an `Unread` of its own, and calls `exchange`. Nothing is
raised: what goes wrong with one request is told in its own reply.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import orjson

from serving.answer_size import AnswerSizes
from serving.budget import OPEN_S, READ_S, Allowance, Budget
from serving.errors import Overloaded, ServingError
from serving.metrics import Metrics, Stopwatch
from serving.predictor import Predictor, Results, Stage
from serving.request import Message, Request, Unread
from serving.request_log import RequestLog
from serving.respond import Answer
from serving.settings import DEFAULT_SETTINGS

logger = logging.getLogger(__name__)

Sent = TypeVar("Sent")


@dataclass(frozen=True)
class Reply:
    """What a transport sends back."""

    status: int
    body: bytes
    content_type: str = "application/json"


class DataPlane:
    """Answers the images of all requests of a batch by one call of the predictor, and tells of each.

    Args:
        predictor: of the model.
        metrics: what is counted; of its own if None.
        log: where a line a request goes, if anywhere.
        batch_size: requests in a full batch.
        aside: what counts and logs while the replies are on their way; a thread if None.
    """

    def __init__(
        self,
        predictor: Predictor,
        metrics: Metrics | None = None,
        log: RequestLog | None = None,
        batch_size: int = DEFAULT_SETTINGS.batch_size,
        aside: Executor | None = None,
    ) -> None:
        self.predictor = predictor
        self._budget = Budget(batch_size)
        self._sizes = AnswerSizes(predictor.bundle.manifest, predictor.limits, predictor.examples)
        self._metrics = metrics or Metrics(predictor.bundle.manifest)
        self._log = log
        self._aside = aside or ThreadPoolExecutor(max_workers=1)

    def answer(self, messages: Sequence[Message], refusal: ServingError | None = None) -> list[Reply]:
        """Answer each request of a batch, in order.

        Args:
            messages: the requests as they arrived.
            refusal: the error that all of them get instead, unread.
        """
        return self.exchange(messages, lambda status, body: Reply(status, orjson.dumps(body)), refusal)

    def exchange(
        self, messages: Sequence[Unread], send: Callable[[int, Answer], Sent], refusal: ServingError | None = None
    ) -> list[Sent]:
        """The same for any transport.

        Args:
            messages: as above.
            send: makes the status and body of each reply, as the request's form has them, into what is sent.
            refusal: as above.
        """
        began, stopwatch = time.perf_counter(), Stopwatch()
        with self._budget.batch([message.size for message in messages]) as allowance:
            requests = [Request(refusal)] * len(messages) if refusal else self._read_all(messages, allowance)
            outcomes = self._predict(requests, stopwatch, allowance)
            _add_timings(requests, outcomes, stopwatch.seconds)
            answers = [request.reply(outcome) for request, outcome in zip(requests, outcomes, strict=True)]
            replies = [send(status, body) for status, body in answers]
        seconds = time.perf_counter() - began
        names, statuses = [message.request_id for message in messages], [status for status, _ in answers]
        self._aside.submit(self._tell, names, statuses, outcomes, seconds, stopwatch.seconds)
        return replies

    def close(self) -> None:
        """Finish counting and logging."""
        self._aside.shutdown()

    def _read_all(self, messages: Sequence[Unread], allowance: Allowance) -> list[Request]:
        """Read the requests of a batch, the smallest first, so that large ones take no time from them."""
        smallest_first = sorted(range(len(messages)), key=lambda n: messages[n].size)
        requests = {n: self._read(messages[n], allowance) for n in smallest_first}
        return [requests[n] for n in range(len(messages))]

    def _read(self, message: Unread, allowance: Allowance) -> Request:
        """One request; what is wrong with it as a whole stands in the place of its images."""
        request = Request(())
        try:
            if not allowance.lets_read(READ_S * message.size + OPEN_S):
                return Request(Overloaded())
            request = message.read(self.predictor.limits)
            self._sizes.check(request)
        except ServingError as error:
            return replace(request, images=error)
        except Exception:
            return Request(_unexpected())
        return request

    def _predict(self, requests: Sequence[Request], stopwatch: Stopwatch, allowance: Allowance) -> list[Results]:
        """What each request gets: all by one call, or, if that fails unexpectedly, request by request."""
        try:
            work = [(request.images, request.options) for request in requests]
            return self.predictor.predict_together(work, stopwatch.time, allowance)
        except Exception:
            error = _unexpected()
        if len(requests) == 1:
            return [error]
        return [self._predict([request], stopwatch, allowance)[0] for request in requests]

    def _tell(
        self,
        names: Sequence[str],
        statuses: Sequence[int],
        outcomes: Sequence[Results],
        seconds: float,
        stages: Mapping[Stage, float],
    ) -> None:
        """Count and log the requests of a batch."""
        try:
            results = [[outcome] if isinstance(outcome, ServingError) else outcome for outcome in outcomes]
            self._metrics.count_batch(sum(map(len, results)), seconds, stages)
            entries = []
            for name, status, images in zip(names, statuses, results, strict=True):
                self._metrics.count_request(status, images)
                errors = [image.code for image in images if isinstance(image, ServingError)]
                entries.append({"request_id": name, "status": status, "images": len(images), "errors": errors})
            if self._log is not None:
                together = {"batch": len(results), "seconds": round(seconds, 6)}
                self._log.write([entry | together for entry in entries])
        except Exception:
            logger.exception("A batch could not be counted and logged")


def _add_timings(requests: Sequence[Request], outcomes: Sequence[Results], stages: Mapping[Stage, float]) -> None:
    """Put into the answers of the requests that ask for it how many milliseconds their batch was in each stage.

    To encode is to make the answers of what the graph says; what it takes to write them as JSON is not in it.
    """
    for request, outcome in zip(requests, outcomes, strict=True):
        if "timings" in request.options.returns and not isinstance(outcome, ServingError):
            timings = {stage: round(1000 * seconds, 3) for stage, seconds in stages.items()}
            for answer in outcome:
                if not isinstance(answer, ServingError):
                    answer["timings"] = timings


def _unexpected() -> ServingError:
    logger.exception("A request failed unexpectedly")
    return ServingError("the server failed to answer this request; its log says why")
