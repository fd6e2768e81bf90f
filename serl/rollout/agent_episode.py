"""One episode of an agent that runs by itself: a key of the gateway, a process, what it asked as steps.

gateway.open ─▶ key ─▶ the agent, in processes of its own ─ requests ─▶ gateway ─▶ policy
gateway.close ─▶ answers ─┐
the agent's report ───────┴─▶ steps
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from envs.agent.child import Call
from envs.agent.provider import AgentArguments, AgentProvider
from envs.agent.report import AgentReport, read_report
from envs.agent.tasks import AgentTask
from serl.rollout.agent_processes import AgentOutcome, AgentProcessError, AgentProcesses
from serl.rollout.agent_steps import agent_steps
from serl.rollout.env_calls import EpisodeFailure
from serl.rollout.episode import (
    EpisodeSettings,
    count_step,
    environment_seed,
    finished_trajectory,
    trajectory_id,
)
from serl.rollout.gateway import (
    EpisodeAccess,
    EpisodeRecord,
    EpisodeTerms,
    Gateway,
    GatewayUnavailable,
)
from serl.rollout.prompt import PromptEncoder
from serl.rollout.report import add_seconds
from serl.types import RolloutRequest, Trajectory


class AgentEpisodes:
    """Plays requests with the agent of ``provider``; ``split`` names the tasks of a request."""

    def __init__(
        self, provider: AgentProvider, processes: AgentProcesses, gateway: Gateway, encoder: PromptEncoder
    ) -> None:
        self._provider = provider
        self._processes = processes
        self._gateway = gateway
        self._encoder = encoder

    def close(self) -> None:
        """Ends the process that starts agents; may be called twice."""
        self._processes.close()

    async def play(
        self, request: RolloutRequest, split: str, settings: EpisodeSettings, counters: Counter[str]
    ) -> Trajectory:
        """The trajectory of one run of the agent; each answer that it got is a step.

        Its ``end_reason`` is ``success``, ``failure``, or the limit that it met: ``max_steps`` or
        ``prompt_too_long``, at which it may raise. Raises EpisodeFailure.
        """
        started = time.perf_counter()
        counters["episodes_started"] += 1
        about = f"task {request.task.task_id!r}"
        task = self._provider.task(split, request.task.task_id)
        try:
            outcome, record, num_leaked = await self._run(request, task, settings)
        except (AgentProcessError, GatewayUnavailable) as error:
            is_gateway = isinstance(error, GatewayUnavailable)
            reason = "gateway_unavailable" if is_gateway else "agent_error"
            raise EpisodeFailure(reason, f"{about}: {error}") from error
        counters.update(record.counters)
        _require_orderly_end(about, outcome, record, num_leaked, self._provider.arguments.timeout_s)
        report = await self._report(about, request, task, outcome, record)
        steps = agent_steps(about, record.answers, report, self._encoder)
        for step in steps:
            count_step(counters, step)
        seconds = time.perf_counter() - started
        # The agent's own: nothing where requests that overlap take longer than the episode.
        own_seconds = max(0.0, seconds - record.generation_seconds)
        add_seconds(counters, "environment_seconds", own_seconds)
        add_seconds(counters, "generation_seconds", record.generation_seconds)
        counters["episodes_finished"] += 1
        return finished_trajectory(
            request,
            steps,
            reward=report.episode_reward,
            success=report.solved,
            end_reason="success" if report.solved else record.limit or "failure",
            seconds=seconds,
            environment_seconds=own_seconds,
            generation_seconds=record.generation_seconds,
            metrics=report.metrics,
        )

    async def _run(
        self, request: RolloutRequest, task: AgentTask, settings: EpisodeSettings
    ) -> tuple[AgentOutcome, EpisodeRecord, int]:
        """What became of the agent, what it asked, and how many processes it left behind."""
        access = await self._gateway.open_episode(
            EpisodeTerms(
                session_id=trajectory_id(request),
                sampling=settings.sampling,
                seed=request.seed if settings.seeded_requests else None,
                max_prompt_length=settings.prompts.max_prompt_length,
                max_answers=settings.max_steps,
                request_timeout_s=settings.request_timeout_s,
                timeout_s=self._provider.arguments.timeout_s,
            )
        )
        record: EpisodeRecord | None = None
        try:
            async with await self._processes.start_run(self._call(request, task, access)) as run:
                outcome = await run.outcome()
                # Before the agent is ended: then it is told what it had still open from what was cut off.
                record = await self._gateway.close_episode(access.api_key)
                return outcome, record, await run.finish()
        finally:
            if record is None:
                await self._gateway.close_episode(access.api_key)

    def _call(self, request: RolloutRequest, task: AgentTask, access: EpisodeAccess) -> Call:
        arguments = self._provider.arguments
        return Call(
            function=arguments.run,
            arguments=[task],
            offered={
                "base_url": access.base_url,
                "api_key": access.api_key,
                "seed": environment_seed(request.task.task_id),
            },
            command=list(arguments.command),
            standard_input=json.dumps(task) if arguments.command else "",
            environment={"OPENAI_BASE_URL": access.base_url, "OPENAI_API_KEY": access.api_key},
            seed=request.seed,
            timeout_s=arguments.timeout_s,
            max_output_bytes=arguments.max_output_kib * 2**10,
        )

    async def _report(
        self,
        about: str,
        request: RolloutRequest,
        task: AgentTask,
        outcome: AgentOutcome,
        record: EpisodeRecord,
    ) -> AgentReport:
        """What the agent says of the episode, with the grader's word in place of its own, if there is one."""
        arguments = self._provider.arguments
        returned = _last_line(outcome.stdout) if arguments.command else outcome.returned
        is_graded = bool(arguments.grader)
        if returned is None and not is_graded and not record.limit:
            text = "the agent returned no reward, and env.args.grader names nobody"
            raise EpisodeFailure("agent_error", f"{about}: {text}")
        # What is graded may be anything, unless it reports on turns.
        is_report = not is_graded or (isinstance(returned, dict) and "turns" in returned)
        try:
            report = read_report(returned) if is_report else AgentReport()
        except ValueError as error:
            raise EpisodeFailure("agent_error", f"{about}: what the agent returned: {error}") from error
        if not is_graded:
            return report
        answers = [self._encoder.decode(answer.completion.token_ids) for answer in record.answers]
        call = _grading(arguments, task, outcome, answers, request.seed)
        try:
            async with await self._processes.start_run(call) as run:
                grade = await run.outcome()
                await run.finish()
            if grade.returned is None:
                raise ValueError(_how_it_ended(grade, arguments.timeout_s))
            return report.graded(read_report(grade.returned))
        except (AgentProcessError, ValueError) as error:
            raise EpisodeFailure("grader_error", f"{about}: the grader: {error}") from error


def _grading(
    arguments: AgentArguments, task: AgentTask, outcome: AgentOutcome, answers: list[str], seed: int
) -> Call:
    return Call(
        function=arguments.grader,
        arguments=[task, outcome.stdout if arguments.command else outcome.returned],
        offered={"answers": answers},
        command=[],
        standard_input="",
        environment={},
        seed=seed,
        timeout_s=arguments.timeout_s,
        max_output_bytes=arguments.max_output_kib * 2**10,
    )


def _require_orderly_end(
    about: str, outcome: AgentOutcome, record: EpisodeRecord, num_leaked: int, timeout_s: float
) -> None:
    """Raises EpisodeFailure; an agent that met a limit of its episode may raise, exit or wait as it likes."""
    if record.failure is not None:
        reason, text = record.failure
        raise EpisodeFailure(reason, f"{about}: {text}")
    if outcome.timed_out and not record.limit:
        raise EpisodeFailure("agent_timeout", f"{about}: {_how_it_ended(outcome, timeout_s)}")
    if num_leaked:
        raise EpisodeFailure("agent_leak", f"{about}: the agent left {num_leaked} processes behind")
    if record.num_open:
        text = f"the agent ended, and {record.num_open} of its requests were still open"
        raise EpisodeFailure("agent_leak", f"{about}: {text}")
    if (outcome.raised is not None or outcome.exit_code) and not record.limit:
        raise EpisodeFailure("agent_error", f"{about}: {_how_it_ended(outcome, timeout_s)}")
    if not record.answers and not record.limit:
        raise EpisodeFailure("agent_error", f"{about}: the agent asked the policy nothing")


def _how_it_ended(outcome: AgentOutcome, timeout_s: float) -> str:
    """In a line; below it what it raised and the end of what it printed."""
    if outcome.timed_out:
        line = f"it did not end within env.args.timeout_s = {timeout_s:g}"
    elif outcome.raised is not None:
        line = f"it raised {outcome.raised.strip().splitlines()[-1]}"
    elif outcome.exit_code:
        line = f"it ended with {outcome.exit_code}"
    else:
        line = "it returned nothing"
    return "\n".join(text for text in (line, outcome.raised, outcome.output) if text)


def _last_line(text: str) -> Any:
    """The last line as JSON, None if it is something else."""
    lines = text.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        return None
