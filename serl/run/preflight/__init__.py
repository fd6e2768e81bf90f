"""What an experiment needs beyond a valid config: data, model, packages, resources. Starts nothing."""

from __future__ import annotations

from pathlib import Path

from envs.agent.provider import AgentProvider
from serl.config import ExperimentConfig
from serl.run.preflight.address import examine_address
from serl.run.preflight.agent import examine_agent, examine_gateway
from serl.run.preflight.data import open_tasks
from serl.run.preflight.finding import Finding
from serl.run.preflight.judge import examine_judge
from serl.run.preflight.machine import examine_machine, examine_resources, needed_cpus, needed_gpus
from serl.run.preflight.memory import examine_memory
from serl.run.preflight.model import examine_checkpoint, examine_engine_args, examine_model, model_folder
from serl.run.preflight.output import examine_copies, examine_output
from serl.run.preflight.prompts import examine_prompts
from serl.run.preflight.variables import examine_variables

__all__ = [
    "Finding",
    "examine",
    "examine_address",
    "examine_checkpoint",
    "examine_inputs",
    "examine_judge",
    "examine_machine",
    "needed_cpus",
    "needed_gpus",
]


def examine(experiment: ExperimentConfig, address: str | None = None) -> list[Finding]:
    """Everything that training would need, found or not; with ``address`` the cluster's resources count."""
    return [
        *examine_inputs(experiment),
        *examine_gateway(experiment, address),
        *examine_resources(experiment, address),
        *examine_memory(experiment, address),
        *examine_judge(experiment, ask=True),
    ]


def examine_inputs(experiment: ExperimentConfig, run_dir: Path | None = None) -> list[Finding]:
    """Data, model and engine arguments, what they make of a prompt, and where the run would write.

    ``run_dir`` is a folder of its own that the run was given: then it makes none in ``output_dir``.
    """
    tasks, findings = open_tasks(experiment)
    findings += examine_model(experiment)
    folder = model_folder(experiment)
    if tasks is not None and folder is not None:
        if isinstance(tasks.provider, AgentProvider):
            findings += examine_agent(tasks.provider, folder)
        else:
            findings += examine_prompts(experiment, tasks, folder)
    findings += examine_engine_args(experiment)
    findings += [] if run_dir else examine_output(experiment)
    findings += examine_copies(experiment)
    return [*findings, *examine_variables(experiment)]
