"""An environment of one's own, whole: guess a number. `env.name: envs.example:make_provider` trains on it."""

from envs.base import PromptParts, Task, TaskSet, TextEnv, manifest_hash

SPLITS = {"train": (1, 3, 5), "valid": (2, 4)}
ACTIONS = [f"guess {number}" for number in range(1, 6)]


class GuessEnv(TextEnv):
    reward_range = (0.0, 10.0)

    def reset(self, *, seed=None, options=None):
        self.secret = {str(n): n for numbers in SPLITS.values() for n in numbers}[(options or {})["task_id"]]
        self.guesses_left = 3
        return "Three guesses.", self._info(True, None)

    def step(self, action):
        if not self.guesses_left:
            raise RuntimeError("step needs a reset first")
        number = int(action.removeprefix("guess ")) if action in ACTIONS else 0
        won = number == self.secret
        self.guesses_left = 0 if won else self.guesses_left - 1
        said = (
            "Right!"
            if won
            else "What?"
            if not number
            else "Too low."
            if number < self.secret
            else "Too high."
        )
        return said, 10.0 * won, self.guesses_left == 0, False, self._info(number > 0, said, won)

    def _info(self, valid, feedback, success=False):
        task = {"task_description": "Guess the number from 1 to 5.", "task_type": "guess"}
        happened = {"action_valid": valid, "feedback": feedback, "success": success}
        return {"admissible_actions": ACTIONS, **task, **happened}


class GuessProvider:
    def task_set(self, split):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}")
        tasks = tuple(Task(str(number), "guess") for number in SPLITS[split])
        return TaskSet(f"guess/{split}", tasks, manifest_hash([(task.task_id, "") for task in tasks]))

    def make_env(self):
        return GuessEnv()

    def messages(self, parts: PromptParts):
        past = "".join(f"{turn.observation}\n{turn.action}\n" for turn in parts.history)
        task = f"{parts.task_description} Answer with <action>guess N</action>."
        return ({"role": "user", "content": f"{task}\n{past}{parts.observation}"},)


def make_provider(args):
    return GuessProvider()
