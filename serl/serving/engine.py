"""The engine of one replica: vLLM in the replica's process, stepped by one thread of its own.

Only that thread touches vLLM. Requests, cancellations and weight updates reach it through a queue and
are carried out between two steps, so an update never races a step.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from serl.private import vllm as private_vllm
from serl.serving.messages import Answer, Request, refused

if TYPE_CHECKING:
    from vllm import LLMEngine, RequestOutput

logger = logging.getLogger(__name__)
T = TypeVar("T")

Deliver = Callable[[list[Answer]], None]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One weight update of one replica, in seconds: loading, and how long generation stood still."""

    weights_seq_no: int
    seconds_load: float
    seconds_paused: float


@dataclass(slots=True)
class _Pending:
    key: int
    deliver: Deliver


class EngineThread:
    """Runs ``build()``'s engine for as long as the process lives.

    ``on_death`` is called in the engine's thread, with the exception, if a step or an update breaks the
    engine; no request is answered afterwards. `wait_until_built` raises what ``build`` raised.
    """

    def __init__(self, build: Callable[[], LLMEngine], on_death: Callable[[BaseException], None]) -> None:
        self._build = build
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._built: Future[None] = Future()
        self._pending: dict[str, _Pending] = {}
        self._numbers = itertools.count()
        self._counters: Counter[str] = Counter()
        self.weights_seq_no = 0
        self._step_began: float | None = None
        self._asleep_since: float | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def wait_until_built(self, timeout_s: float) -> None:
        """Returns when the engine can be used; raises what building it raised, or TimeoutError."""
        try:
            self._built.result(timeout_s)
        except TimeoutError as error:
            if self._built.done():
                raise
            raise TimeoutError(f"vLLM's engine was not built within {timeout_s:g} s") from error

    @property
    def seconds_in_step(self) -> float:
        """How long the engine's present step has lasted; 0 between two steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, requests: list[Request], deliver: Deliver) -> list[str]:
        """Queues ``requests``; ``deliver`` gets their answers, in the engine's thread, as they finish.

        Returns the engine's names of the requests, which `abort` takes.
        """
        names = [str(next(self._numbers)) for _ in requests]
        self._inbox.put(lambda: self._add(names, requests, deliver))
        return names

    def abort(self, names: list[str]) -> None:
        """Forgets the requests ``names``; their answers are not delivered."""
        if names:
            self._inbox.put(lambda: self._abort(names))

    def load_weights(self, update: dict[str, Any], weights_seq_no: int) -> Future[LoadReport]:
        """Between two steps: pauses all requests, loads the weights, resumes.

        ``update`` is what `serl.serving.transfer.receiver` takes. Tokens sampled before keep their
        version and log-probabilities; prefixes are computed anew. An update that can be read again is tried
        twice. The future raises what the last attempt raised; the engine is unusable then, `on_death` has
        been called.
        """
        return self._call(lambda: self._load_weights(update, weights_seq_no))

    def sleep(self) -> Future[LoadReport]:
        """Between two steps: pauses all requests and gives the memory back until weights are loaded."""
        return self._call(self._sleep)

    def join_transfer_group(self, init_info: dict[str, Any]) -> Future[list[None]]:
        """Makes the workers join the communication group of ``init_info``."""
        return self._call(
            lambda: self._engine.collective_rpc("init_weight_transfer_engine", args=(init_info,))
        )

    def statistics(self) -> dict[str, int]:
        """Counters since the start, the numbers of running and waiting requests, the weights' version."""
        num_running, num_waiting = private_vllm.num_requests(self._engine)
        return {
            "prompt_tokens": self._counters["prompt_tokens"],
            "cached_tokens": self._counters["cached_tokens"],
            "generated_tokens": self._counters["generated_tokens"],
            "finished_requests": self._counters["finished_requests"],
            "refused_requests": self._counters["refused_requests"],
            "aborted_requests": self._counters["aborted_requests"],
            "engine_steps": self._counters["engine_steps"],
            "running_requests": num_running,
            "waiting_requests": num_waiting,
            "weights_seq_no": self.weights_seq_no,
        }

    def _run(self) -> None:
        try:
            self._engine = self._build()
            self._adapter = private_vllm.adapter_request(self._engine)
            if self._adapter is not None:
                self._engine.collective_rpc("activate_adapters")
            self._engine.set_weight_version(str(self.weights_seq_no))
        except BaseException as error:
            self._built.set_exception(error)
            return
        self._built.set_result(None)
        try:
            while True:
                self._take_inbox()
                if self._asleep_since is None and self._engine.has_unfinished_requests():
                    self._counters["engine_steps"] += 1
                    self._step_began = time.monotonic()
                    outputs = self._engine.step()
                    self._step_began = None
                    self._deliver(outputs)
        except BaseException as error:
            logger.exception("the engine broke")
            self._on_death(error)

    def _take_inbox(self) -> None:
        if self._asleep_since is not None or not self._engine.has_unfinished_requests():
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def _call(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
                raise

        self._inbox.put(run)
        return future

    def _add(self, names: list[str], requests: list[Request], deliver: Deliver) -> None:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input

        refusals = []
        for name, request in zip(names, requests, strict=True):
            try:
                internal_name = self._engine.add_request(
                    name,
                    tokens_input(request.prompt_ids),
                    _sampling_params(request),
                    lora_request=self._adapter,
                )
            except (VLLMClientError, ValueError) as error:
                refusals.append(refused(request, str(error)))
                continue
            private_vllm.leave_token_texts_out(self._engine, internal_name)
            self._pending[name] = _Pending(request.key, deliver)
        if refusals:
            self._counters["refused_requests"] += len(refusals)
            deliver(refusals)

    def _abort(self, names: list[str]) -> None:
        known = [name for name in names if self._pending.pop(name, None) is not None]
        self._counters["aborted_requests"] += len(known)
        self._engine.abort_request(known)

    def _deliver(self, outputs: list[Any]) -> None:
        answers: dict[Deliver, list[Answer]] = {}
        for output in outputs:
            pending = self._pending.pop(output.request_id, None) if output.finished else None
            if pending is not None:
                answers.setdefault(pending.deliver, []).append(self._answer(pending.key, output))
        for deliver, finished in answers.items():
            deliver(finished)

    def _answer(self, key: int, output: RequestOutput) -> Answer:
        response = output.outputs[0]
        num_cached_tokens = output.num_cached_tokens or 0
        self._counters["prompt_tokens"] += len(output.prompt_token_ids or ())
        self._counters["cached_tokens"] += num_cached_tokens
        self._counters["generated_tokens"] += len(response.token_ids)
        self._counters["finished_requests"] += 1
        return Answer(
            key=key,
            token_ids=list(response.token_ids),
            logprobs=list(response.logprobs.logprobs),  # type: ignore[union-attr]
            finish_reason=response.finish_reason or "",
            spans=[(span.start, span.end, int(span.version)) for span in response.weight_versions or ()],
            num_cached_tokens=num_cached_tokens,
        )

    def _sleep(self) -> LoadReport:
        if self._asleep_since is None:
            self._asleep_since = time.perf_counter()
            private_vllm.pause(self._engine, self._deliver)
            private_vllm.sleep(self._engine)
        return LoadReport(self.weights_seq_no, 0.0, 0.0)

    def _load_weights(self, update: dict[str, Any], weights_seq_no: int) -> LoadReport:
        if self._asleep_since is None:
            paused = time.perf_counter()
            private_vllm.pause(self._engine, self._deliver)
        else:
            paused = self._asleep_since
            private_vllm.wake_weights(self._engine)
        started = time.perf_counter()
        try:
            self._transfer(update)
        except Exception:
            if update["kind"] == "nccl":
                raise  # nobody broadcasts it a second time
            logger.exception("weights %d: the update failed, trying it once more", weights_seq_no)
            started = time.perf_counter()
            self._transfer(update)
        seconds_load = time.perf_counter() - started
        self._engine.set_weight_version(str(weights_seq_no))
        self.weights_seq_no = weights_seq_no
        # Reached only if the load succeeded: generating with half-loaded weights is worse than dying.
        if self._asleep_since is None:
            private_vllm.resume(self._engine)
        else:
            private_vllm.wake_cache(self._engine)
            self._asleep_since = None
        return LoadReport(weights_seq_no, seconds_load, time.perf_counter() - paused)

    def _transfer(self, update: dict[str, Any]) -> None:
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", args=(update,))
        self._engine.collective_rpc("finish_weight_update")
        if self._adapter is not None:
            self._engine.collective_rpc("activate_adapters")


def _sampling_params(request: Request) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stop=list(request.stop) or None,
        detokenize=bool(request.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )
