from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.alfworld.engine import Engine
from envs.alfworld.oracle import plan
from envs.alfworld.provider import AlfworldProvider, make_provider
from serl.config.load import load_experiment
from serl.hindsight.context import render_context
from serl.hindsight.evidence import Evidence, StepEvidence
from serl.rollout.actions import action_token_mask, parse_action
from serl.rollout.episode_prompts import PromptSettings
from serl.rollout.episode_state import EpisodeState
from serl.rollout.prompt import PromptEncoder
from tools.warm_start.__main__ import parse_arguments
from tools.warm_start.behaviour_cloning import (
    CloningSettings,
    EncodedDemonstration,
    clone,
    learning_rate_scale,
    token_losses,
)
from tools.warm_start.demonstrations import DemonstrationSettings, demonstrate
from tools.warm_start.model import PolicyShape, build_policy
from tools.warm_start.playing import PlaySettings, play_tasks, sample_responses
from tools.warm_start.run import WarmStartSettings, encode, play_held_out, save, save_report, warm_start
from tools.warm_start.tokenizer import END, PAD, build_tokenizer, hindsight_headings, policy_phrases, token_id

REPOSITORY = Path(__file__).resolve().parents[2]
TINY_POLICY = REPOSITORY / "serl" / "policies" / "tiny_alfworld"
WINDOWS = PromptSettings.of(load_experiment(REPOSITORY / "experiments" / "quickstart.yaml"))
PLAY = PlaySettings(max_steps=15, prompts=WINDOWS, temperature=1.0, max_response_length=24)
SMALL_SHAPE = PolicyShape(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=128, max_positions=512)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def provider() -> AlfworldProvider:
    return make_provider({"max_receptacles": 6})


@pytest.fixture(scope="module")
def demonstrations(provider: AlfworldProvider):
    settings = DemonstrationSettings(num_episodes=40, answer_share=0.25, success_share=0.1)
    return list(demonstrate(provider, provider.task_set("train").tasks, settings, seed=5))


@pytest.fixture(scope="module")
def tokenizer(demonstrations, provider: AlfworldProvider):
    texts = [text for d in demonstrations for text in (d.messages[-1]["content"], d.response)]
    return build_tokenizer(texts, provider.prompt_phrases(), vocab_size=700, model_max_length=512)


@pytest.fixture(scope="module")
def tiny():
    """The policy that ships with SERL, loaded as any other Hugging Face folder."""
    policy = AutoModelForCausalLM.from_pretrained(TINY_POLICY, dtype=torch.float32).eval()
    return policy, AutoTokenizer.from_pretrained(TINY_POLICY)


def test_demonstrations_are_the_same_for_the_same_seed(provider: AlfworldProvider) -> None:
    tasks = provider.task_set("train").tasks
    settings = DemonstrationSettings(num_episodes=4)
    first = list(demonstrate(provider, tasks, settings, seed=1))
    assert first == list(demonstrate(provider, tasks, settings, seed=1))
    assert first != list(demonstrate(provider, tasks, settings, seed=2))


def test_every_demonstrated_action_is_admissible(demonstrations) -> None:
    """``help`` is admissible everywhere, but a prompt does not offer it."""
    for demonstration in demonstrations:
        action = parse_action(demonstration.response)
        prompt = demonstration.messages[-1]["content"]
        offered = prompt.partition("\nAdmissible actions: ")[2].partition("\n")[0].split(", ")
        assert action in [*offered, "help"], prompt


def test_some_demonstrations_show_hindsight_with_the_words_of_the_teacher(demonstrations) -> None:
    with_hindsight = [d for d in demonstrations if d.has_hindsight]
    assert 0.1 < len(with_hindsight) / len(demonstrations) < 0.4
    feedback, success, _, _ = hindsight_headings()
    for demonstration in demonstrations:
        prompt = demonstration.messages[-1]["content"]
        assert (feedback in prompt or success in prompt) == demonstration.has_hindsight
    prompts = [demonstration.messages[-1]["content"] for demonstration in with_hindsight]
    assert sum(feedback in prompt for prompt in prompts) > sum(success in prompt for prompt in prompts) > 0
    assert any(success in prompt and "The environment's answer" in prompt for prompt in prompts)


def test_no_label_is_an_action_that_the_shown_answer_refuses(demonstrations) -> None:
    refused = 0
    for demonstration in demonstrations:
        _, found, context = demonstration.messages[-1]["content"].partition("## The environment's answer")
        if found and "is not an admissible action here" in context:
            refused += 1
            assert parse_action(demonstration.response) not in context
    assert refused >= 5


def test_a_thought_of_another_step_is_given_beside_hindsight_and_not_learned(
    provider: AlfworldProvider, tokenizer
) -> None:
    settings = DemonstrationSettings(num_episodes=3, stray_thought_share=1.0)
    shown = list(demonstrate(provider, provider.task_set("train").tasks, settings, seed=5))
    told = [one for one in shown if one.has_hindsight]
    assert told and all(one.thought_is_given == one.has_hindsight for one in shown)
    (encoded,) = encode(told[:1], tokenizer)
    learned = [
        id_ for id_, is_learned in zip(encoded.token_ids, encoded.is_response, strict=True) if is_learned
    ]
    _, action = told[0].response.split("</think>")
    assert tokenizer.decode(learned[:-1]) == action


def test_the_demonstrator_knows_the_best_action_and_a_solution(provider: AlfworldProvider) -> None:
    for task in provider.task_set("train").tasks[:10]:
        env = provider.make_env()
        env.reset(options={"task_id": task.task_id})
        demonstrator = provider.demonstrator(env, random.Random(0), 0.0)
        assert isinstance(env.engine, Engine)
        before = len(plan(env.engine))
        best = demonstrator.best_action()
        assert best is not None and demonstrator.try_out(best)[1]
        env.step(best)
        assert len(plan(env.engine)) < before
        replay = provider.make_env()
        replay.reset(options={"task_id": task.task_id})
        infos = [replay.step(action)[4] for action in demonstrator.solution()]
        assert infos[-1]["success"] and all(info["action_valid"] for info in infos)


def test_demonstrations_include_recoveries_from_inadmissible_actions(demonstrations) -> None:
    assert any("You see: Nothing happens." in d.messages[-1]["content"] for d in demonstrations)


def test_phrases_are_one_token_and_survive_decoding(tokenizer, provider: AlfworldProvider) -> None:
    for phrase in policy_phrases(provider.prompt_phrases()):
        ids = tokenizer.encode(phrase, add_special_tokens=False)
        assert len(ids) == 1, phrase
        assert tokenizer.decode(ids, skip_special_tokens=True) == phrase


@pytest.mark.parametrize(
    "text",
    [
        "<think>find mug</think><action>go to shelf 12</action>",
        "Task: put a mouse in house\nYou see: You arrive at closet 3. On the closet 3, you see an apple.",
        "日本 é ✓ \t tabs\nand  spaces",
    ],
)
def test_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_a_command_word_is_not_found_inside_another_word(tokenizer) -> None:
    use = token_id(tokenizer, "use")
    assert use in tokenizer.encode("use desklamp 1", add_special_tokens=False)
    assert use not in tokenizer.encode("mouse", add_special_tokens=False)


def test_the_chat_template_ends_where_the_answer_begins(tokenizer) -> None:
    encoder = PromptEncoder(tokenizer)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert tokenizer.decode(encoder.encode(messages)) == "S<|user|>U<|assistant|>"
    answered = [*messages, {"role": "assistant", "content": "A"}]
    text = tokenizer.apply_chat_template(answered, tokenize=False)
    assert text == "S<|user|>U<|assistant|>A<|end|>"


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    assert learning_rate_scale(0, 100, 10) == pytest.approx(0.1)
    assert learning_rate_scale(9, 100, 10) == pytest.approx(1.0)
    assert learning_rate_scale(55, 100, 10) == pytest.approx(0.55)
    assert learning_rate_scale(100, 100, 10) == pytest.approx(0.1)


def test_the_losses_are_means_over_response_and_over_prompt_tokens(tokenizer) -> None:
    policy = build_policy(tokenizer, SMALL_SHAPE, seed=0)
    short = EncodedDemonstration.of([5, 6, 7], [8, 9])
    long = EncodedDemonstration.of([10, 11], [12, 13, 14, 15])
    response, prompt = [], []
    for demonstration in (short, long):
        ids = torch.tensor([demonstration.token_ids])
        logprobs = policy(ids).logits.log_softmax(-1)[0]
        start = demonstration.is_response.index(True)
        losses = [-logprobs[at - 1, ids[0, at]].item() for at in range(1, ids.shape[1])]
        prompt += losses[: start - 1]
        response += losses[start - 1 :]
    assert (len(response), len(prompt)) == (6, 3)
    measured = token_losses(policy, [short, long], token_id(tokenizer, PAD))
    assert measured[0].item() == pytest.approx(sum(response) / 6, abs=1e-5)
    assert measured[1].item() == pytest.approx(sum(prompt) / 3, abs=1e-5)


def test_the_steps_of_a_conversation_are_one_sequence_and_hindsight_branches_off(
    provider: AlfworldProvider, tokenizer
) -> None:
    settings = DemonstrationSettings(num_episodes=2, prompt="conversation")
    shown = list(demonstrate(provider, provider.task_set("train").tasks, settings, seed=1))
    told = [d for d in shown if d.has_hindsight]
    sequences = encode(shown, tokenizer)
    assert len(sequences) == 2 + len(told) < len(shown)
    spoken = [tokenizer.decode(ids) for one in sequences for ids in _learned(one)]
    assert sorted(spoken) == sorted(f"{d.response}{END}" for d in shown)
    assert sum(len(_learned(one)) > 1 for one in sequences) == 2


def _learned(demonstration: EncodedDemonstration) -> list[list[int]]:
    """The runs of tokens to learn, one after another."""
    end = demonstration.token_ids[-1]
    runs: list[list[int]] = [[]]
    for token, is_learned in zip(demonstration.token_ids, demonstration.is_response, strict=True):
        if is_learned:
            runs[-1].append(token)
            runs += [[]] if token == end else []
    return runs[:-1]


def test_cloning_lowers_the_loss(tokenizer, demonstrations) -> None:
    policy = build_policy(tokenizer, SMALL_SHAPE, seed=0)
    settings = CloningSettings(lr=3e-3, batch_size=8, warmup_updates=5)
    losses = clone(
        policy, encode(demonstrations[:320], tokenizer), settings, token_id(tokenizer, PAD), seed=0
    )
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_responses_in_a_batch_are_those_of_each_prompt_alone(tiny) -> None:
    policy, tokenizer = tiny
    encoder = PromptEncoder(tokenizer)
    prompts = [
        encoder.encode([{"role": "user", "content": text}]) for text in ("Task: put", "You see: a mug 1.")
    ]
    settings = replace(PLAY, temperature=1e-4, max_response_length=8)
    together = sample_responses(policy, tokenizer, prompts, settings, torch.Generator().manual_seed(0))
    alone = [
        sample_responses(policy, tokenizer, [prompt], settings, torch.Generator().manual_seed(0))[0]
        for prompt in prompts
    ]
    assert together == alone


def test_a_warm_start_can_be_saved_and_loaded(provider: AlfworldProvider, tmp_path: Path) -> None:
    settings = WarmStartSettings(
        vocab_size=500,
        demonstrations=DemonstrationSettings(num_episodes=6),
        shape=SMALL_SHAPE,
        cloning=CloningSettings(batch_size=8),
    )
    start = warm_start(provider, "train", settings)
    held_out = play_held_out(start, provider, "valid_seen", 4, replace(PLAY, max_steps=3))
    save(start, tmp_path / "policy")
    save_report(start, settings, held_out, tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    ids = torch.tensor([PromptEncoder(tokenizer).encode([{"role": "user", "content": "Task: put"}])])
    assert torch.equal(loaded(ids).logits, start.policy.eval()(ids).logits)
    assert (tmp_path / "policy" / "warm_start.json").exists()


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m tools.warm_start")
    assert "behaviour cloning of an environment's demonstrator" in said


def test_the_shipped_policy_is_small_and_in_safetensors() -> None:
    names = {file.name for file in TINY_POLICY.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (TINY_POLICY / "model.safetensors").stat().st_size <= 4 * 2**20


def test_the_shipped_tokenizer_knows_the_words_of_the_prompts(tiny, provider: AlfworldProvider) -> None:
    """Fails when the prompt's wording changed and the policy was not trained anew."""
    _, tokenizer = tiny
    encoder = PromptEncoder(tokenizer)
    env = provider.make_env()
    lengths = []
    for task in provider.task_set("valid_seen").tasks[:20]:
        state = EpisodeState(*env.reset(options={"task_id": task.task_id}))
        actions = [name for name in state.info["admissible_actions"] if name != "help"]
        lengths.append(len(encoder.encode(provider.messages(state.prompt_parts(1)))))
        action = random.Random(0).choice(actions)
        state.advance(action, env.step(action))
        messages = provider.messages(state.prompt_parts(1))
        lengths.append(len(encoder.encode(messages)))
    assert max(lengths) <= 120 and sum(lengths) / len(lengths) <= 75
    assert encoder.num_tokens(messages[0]["content"]) == 1
    assert [encoder.num_tokens(heading) for heading in hindsight_headings()] == [1, 1, 1, 1]


def test_the_shipped_policy_solves_some_held_out_games(tiny, provider: AlfworldProvider) -> None:
    policy, tokenizer = tiny
    tasks = provider.task_set("valid_seen").tasks[::24]
    result = play_tasks(policy, tokenizer, provider, tasks, PLAY, seed=0)
    assert result.success_rate >= 0.15, result
    assert result.inadmissible_rate <= 0.6, result
    assert result.response_tokens <= 15


def action_logprob(policy, tokenizer, prompt_ids: list[int], response_ids: list[int]) -> float:
    ids = torch.tensor([prompt_ids + response_ids])
    with torch.no_grad():
        logprobs = policy(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    mask = torch.tensor(action_token_mask(response_ids, tokenizer))
    return logprobs.gather(1, torch.tensor(response_ids)[:, None])[mask, 0].sum().item()


def hindsight_gain(policy, tokenizer, messages, action: str, feedback: str) -> float:
    """How much the log-probability of the action's tokens rises (nats) when its feedback is shown."""
    encoder = PromptEncoder(tokenizer)
    context, _ = render_context(StepEvidence(parts=(Evidence("immediate_feedback", text=feedback),)))
    *before, last = messages
    shown = [*before, {**last, "content": f"{last['content']}\n\n{context}"}]
    thought = tokenizer.encode("<think>find it</think>", add_special_tokens=False)
    response = [*thought, *tokenizer.encode(f"<action>{action}</action>", add_special_tokens=False)]
    prompts = encoder.encode(messages), encoder.encode(shown)
    plain, informed = (action_logprob(policy, tokenizer, prompt, response) for prompt in prompts)
    return informed - plain


def test_the_shipped_policy_reads_hindsight(tiny, provider: AlfworldProvider) -> None:
    """An answer that shows progress makes its action likelier than before, and than a refusal does."""
    policy, tokenizer = tiny
    progress, refusal = [], []
    for task in provider.task_set("valid_seen").tasks[:30]:
        env = provider.make_env()
        state = EpisodeState(*env.reset(options={"task_id": task.task_id}))
        assert isinstance(env.engine, Engine)
        commands = plan(env.engine)
        for command in commands[:2]:
            messages = provider.messages(EpisodeState(state.observation, state.info).prompt_parts(0))
            state.advance(command, env.step(command))
            progress.append(hindsight_gain(policy, tokenizer, messages, command, state.info["feedback"]))
            refused = f"'{command}' is not an admissible action here: nothing happened."
            refusal.append(hindsight_gain(policy, tokenizer, messages, command, refused))
    assert sum(progress) / len(progress) > 0.05
    assert sum(progress) / len(progress) > sum(refusal) / len(refusal) + 0.05


def test_the_end_token_is_special_and_the_tags_are_not(tiny) -> None:
    _, tokenizer = tiny
    ids = tokenizer.encode(f"<action>look</action>{END}", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<action>look</action>"
