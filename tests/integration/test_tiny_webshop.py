"""The policy of the WebShop quickstart, as it ships with SERL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from envs.registry import make_provider
from serl.config.load import load_experiment
from serl.models.resolve import resolve_model
from serl.rollout.episode_prompts import PromptSettings
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from tools.warm_start.playing import PlaySettings, play_tasks

EXPERIMENT = load_experiment(
    Path(__file__).resolve().parents[2] / "experiments" / "webshop_quickstart.yaml", []
)
FOLDER = resolve_model(EXPERIMENT.model.path)


@pytest.fixture(scope="module")
def provider():
    return make_provider(EXPERIMENT.env.name, EXPERIMENT.env.args)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_small_and_in_safetensors() -> None:
    names = {file.name for file in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (FOLDER / "model.safetensors").stat().st_size <= 4 * 2**20


def test_its_tokenizer_knows_the_words_of_the_prompts(tokenizer, provider) -> None:
    """Fails when the prompt's wording changed and the policy was not trained anew."""
    encoder = PromptEncoder(tokenizer)
    lengths = []
    for task in provider.task_set("valid").tasks[:20]:
        env = provider.make_env()
        state = EpisodeState(*env.reset(options={"task_id": task.task_id}))
        for action in (f"search[{state.info['task_description']}]", "click[next >]"):
            state.advance(action, env.step(action))
            messages = provider.messages(state.prompt_parts(1))
            lengths.append(len(encoder.encode(messages)))
    assert encoder.num_tokens(messages[0]["content"]) == 1
    assert max(lengths) <= 260 and sum(lengths) / len(lengths) <= 180
    assert all(encoder.num_tokens(phrase) == 1 for phrase in provider.prompt_phrases())


@pytest.mark.usefixtures("one_torch_thread")
def test_it_meets_some_held_out_goals_and_leaves_room_to_improve(tokenizer, provider) -> None:
    policy = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tasks = provider.task_set(EXPERIMENT.evaluation.split).tasks[: EXPERIMENT.evaluation.num_tasks]
    settings = PlaySettings(
        max_steps=EXPERIMENT.env.max_steps,
        prompts=PromptSettings.of(EXPERIMENT),
        temperature=EXPERIMENT.evaluation.temperature,
        max_response_length=EXPERIMENT.rollout.max_response_length,
    )
    result = play_tasks(policy, tokenizer, provider, tasks, settings, seed=0)
    assert 0.1 <= result.success_rate <= 0.5, result
    assert result.response_tokens <= 20
