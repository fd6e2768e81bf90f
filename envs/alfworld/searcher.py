"""A player that knows only what it has seen: it searches, remembers, and then does the task.

Its episodes are demonstrations for behaviour cloning, so every action comes with a very short thought.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

_NAME = r"[a-z]+ \d+"
_LISTED = re.compile(rf"\ban? ({_NAME})")
_CONTENTS = re.compile(rf"(?:On the ({_NAME}), you see|The ({_NAME}) is open\. In it, you see) ([^.]*)\.")
_CLOSED = re.compile(rf"[Tt]he ({_NAME}) is closed")
_GOAL_FORMS = (
    ("look", re.compile(r"(?:look at|examine the) (?P<obj>\w+) (?:under|with) the (?P<toggle>\w+)")),
    ("two", re.compile(r"(?:put|find) two (?P<obj>\w+) (?:and put them )?(?:in|on) (?P<parent>\w+)")),
    ("change", re.compile(r"put an? (?P<state>clean|hot|cool) (?P<obj>\w+) (?:in|on) (?P<parent>\w+)")),
    ("change", re.compile(r"(?P<state>clean|heat|cool) some (?P<obj>\w+) and put it in (?P<parent>\w+)")),
    ("put", re.compile(r"put (?:an?|some) (?P<obj>\w+) (?:in|on) (?P<parent>\w+)")),
)
APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_OPPOSITES = {"heat": "cool", "cool": "heat"}
_IDLE = frozenset({"help", "inventory", "look"})

# Where things usually are: the chance to look there next, relative to 1.
_LIKELY = {
    **dict.fromkeys(("countertop", "diningtable", "desk"), 4.0),
    **dict.fromkeys(("coffeetable", "dresser"), 3.0),
    **dict.fromkeys(("bed", "sofa", "sidetable"), 2.0),
    **dict.fromkeys(("fridge", "cart", "toilet"), 1.5),
    **dict.fromkeys(("drawer", "cabinet", "safe"), 0.5),
    **dict.fromkeys(("stoveburner", "coffeemachine", "laundryhamper", "toaster"), 0.2),
    **dict.fromkeys(("towelholder", "handtowelholder", "toiletpaperhanger"), 0.2),
}
# what such places are for
_HOMES = {
    "stoveburner": ("pan", "pot", "kettle"),
    "towelholder": ("towel",),
    "handtowelholder": ("handtowel",),
    "toiletpaperhanger": ("toiletpaper", "toiletpaperroll"),
}


@dataclass(frozen=True, slots=True)
class SearchGoal:
    """A goal sentence understood: lower-case types, empty where the goal has none.

    ``verb`` is clean, heat or cool; ``count`` is how many objects have to be in the receptacle.
    """

    object: str
    parent: str = ""
    toggle: str = ""
    verb: str = ""
    count: int = 1


def parse_goal(task_description: str) -> SearchGoal:
    """Reads a goal sentence of ALFWorld's own templates. Raises ValueError for any other sentence."""
    text = task_description.strip().lower()
    for kind, form in _GOAL_FORMS:
        match = form.search(text)
        if match is None:
            continue
        found = match.groupdict()
        state = found.get("state") or ""
        return SearchGoal(
            object=found["obj"],
            parent=found.get("parent") or "",
            toggle=found.get("toggle") or "",
            verb="heat" if state == "hot" else state,
            count=2 if kind == "two" else 1,
        )
    raise ValueError(f"not a goal sentence of ALFWorld: {task_description!r}")


def type_of(name: str) -> str:
    """``mug 2`` -> ``mug``."""
    return name.rpartition(" ")[0]


@dataclass(slots=True)
class Memory:
    """What has been seen so far. ``contents`` lacks what was never looked into; ``here`` is in reach now.

    ``changed`` holds ``(verb, object)``: what was done to which object and not undone since.
    """

    receptacles: list[str] = field(default_factory=list)
    contents: dict[str, list[str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)
    here: set[str] = field(default_factory=set)
    held: str = ""
    taken_from: str = ""
    changed: set[tuple[str, str]] = field(default_factory=set)
    refused: set[tuple[str, str]] = field(default_factory=set)

    def observe(self, observation: str, admissible: list[str]) -> None:
        """Takes in what is seen, and what the admissible commands show to be in reach."""
        going = [command.removeprefix("go to ") for command in admissible if command.startswith("go to ")]
        self.receptacles += [name for name in going if name not in self.receptacles]
        self.here = set(self.receptacles) - set(going)
        for on, inside, things in _CONTENTS.findall(observation):
            self.contents[on or inside] = _LISTED.findall(things)
            self.closed.discard(on or inside)
        self.closed.update(_CLOSED.findall(observation))

    def remember(self, action: str, observation: str) -> None:
        """Takes in what the last action did, judged by what the game said."""
        verb, _, rest = action.partition(" ")
        if verb == "take" and observation.startswith("You pick up"):
            thing, _, place = rest.partition(" from ")
            self.contents[place] = [name for name in self.contents.get(place, []) if name != thing]
            self.held, self.taken_from = thing, place
        elif verb == "move" and observation.startswith("You move"):
            thing, _, place = rest.partition(" to ")
            self.contents.setdefault(place, []).append(thing)
            self.held = ""
        elif verb in APPLIANCES and observation.startswith(f"You {verb}"):
            thing = rest.partition(" with ")[0]
            self.changed -= {(_OPPOSITES.get(verb, verb), thing)}
            self.changed.add((verb, thing))
        elif verb == "open" and observation.startswith("You open"):
            self.opened.add(rest)
        elif verb == "close" and observation.startswith("You close"):
            self.opened.discard(rest)
            self.closed.add(rest)

    def places_of(self, object_type: str) -> list[tuple[str, str]]:
        """``(object, receptacle)`` of all objects of a type that were seen and not taken since."""
        return [
            (name, place)
            for place in self.receptacles
            for name in self.contents.get(place, [])
            if type_of(name) == object_type
        ]


class Searcher:
    """Plays one episode of the goal sentence ``task_description`` from what it observes alone.

    With probability ``noise`` an action is drawn from all admissible ones instead, and the next ones make up
    for it; ``last_action_was_random`` then says so. ``search_order`` is ``plausible`` (drawn, likely places
    first) or ``listed`` (as the room lists them, which a policy with little memory can imitate).
    Raises ValueError for a sentence it does not know.
    """

    def __init__(
        self, task_description: str, rng: random.Random, noise: float = 0.0, search_order: str = "plausible"
    ):
        if search_order not in ("plausible", "listed"):
            raise ValueError(f"unknown search order {search_order!r}; known: plausible, listed")
        self.goal = parse_goal(task_description)
        self.memory = Memory()
        self.last_action_was_random = False
        self._rng = rng
        self._noise = noise
        self._search_order = search_order
        self._last_action = ""

    def act(self, observation: str, admissible_commands: list[str]) -> tuple[str, str]:
        """The next ``(thought, action)``; the action is always admissible."""
        observation = observation.strip()
        self.memory.remember(self._last_action, observation)
        self.memory.observe(observation, admissible_commands)
        self.last_action_was_random = self._rng.random() < self._noise
        if self.last_action_was_random:
            thought, action = "try something", self._rng.choice(admissible_commands)
        else:
            thought, action = self._decide(admissible_commands)
            if action not in admissible_commands:
                # something is not where it was seen: only looking again can tell
                self.memory.contents.clear()
                thought, action = (
                    f"find {self.goal.object}",
                    self._search(self.goal.object, admissible_commands),
                )
        self._last_action = action
        return thought, action

    def _decide(self, admissible: list[str]) -> tuple[str, str]:
        goal, held = self.goal, self.memory.held
        if held and type_of(held) != goal.object:
            return f"put {type_of(held)}", self._put_away(admissible)
        if held and goal.toggle:
            return self._use_toggle(admissible)
        if held and goal.verb and not self._is_changed(held):
            return f"{goal.verb} {goal.object}", self._change(admissible)
        if held:
            return f"put {goal.object}", self._put(admissible)
        wanted = self._wanted_objects()
        if wanted:
            name, place = self._nearest(wanted)
            return f"take {goal.object}", self._reach(place, admissible) or f"take {name} from {place}"
        if self._goal_looks_met():
            return "close all", self._tidy_up(admissible)
        return f"find {goal.object}", self._search(goal.object, admissible)

    def _wanted_objects(self) -> list[tuple[str, str]]:
        """The goal's objects that are not yet where, and as, they should be."""
        goal, memory = self.goal, self.memory
        if self._goal_looks_met():
            return []
        seen = memory.places_of(goal.object)
        if goal.count > 1:
            target = self._target(goal.object)
            return [(name, place) for name, place in seen if place != target]
        return [
            (name, place)
            for name, place in seen
            if type_of(place) != goal.parent or not self._is_changed(name)
        ]

    def _goal_looks_met(self) -> bool:
        goal, memory = self.goal, self.memory
        if not goal.parent:
            return False
        met = [
            (name, place)
            for name, place in memory.places_of(goal.object)
            if type_of(place) == goal.parent and self._is_changed(name)
        ]
        places = [place for _, place in met]
        return any(places.count(place) >= goal.count for place in places)

    def _is_changed(self, name: str) -> bool:
        return not self.goal.verb or (self.goal.verb, name) in self.memory.changed

    def _nearest(self, options: list[tuple[str, str]]) -> tuple[str, str]:
        in_reach = [(name, place) for name, place in options if place in self.memory.here]
        return (in_reach or options)[0]

    def _target(self, object_type: str) -> str:
        """The receptacle to bring the object to: one with the most of them, then one known to be open."""
        memory = self.memory
        options = [
            place
            for place in memory.receptacles
            if type_of(place) == self.goal.parent and (object_type, place) not in memory.refused
        ]
        if not options:
            memory.refused.clear()
            options = [place for place in memory.receptacles if type_of(place) == self.goal.parent]
        if not options:
            return ""

        def preference(place: str) -> tuple[int, bool, bool]:
            inside = [type_of(name) for name in memory.contents.get(place, [])].count(object_type)
            return inside, place in memory.here, place in memory.contents and place not in memory.closed

        return max(options, key=preference)

    def _put(self, admissible: list[str]) -> str:
        memory, held = self.memory, self.memory.held
        place = self._target(type_of(held))
        if not place:
            return self._put_away(admissible)
        step = self._reach(place, admissible)
        if step:
            return step
        action = f"move {held} to {place}"
        if action in admissible:
            return action
        memory.refused.add((type_of(held), place))
        return self._put_away(admissible)

    def _put_away(self, admissible: list[str]) -> str:
        """Gets rid of what is held: here if possible, else where it came from, else anywhere else."""
        here = [command for command in admissible if command.startswith("move ")]
        if here:
            return here[0]
        return self._reach(self.memory.taken_from, admissible) or self._rng.choice(admissible)

    def _change(self, admissible: list[str]) -> str:
        appliance = APPLIANCES[self.goal.verb]
        options = [place for place in self.memory.receptacles if type_of(place) == appliance]
        in_reach = [place for place in options if place in self.memory.here]
        for place in in_reach or options:
            action = f"{self.goal.verb} {self.memory.held} with {place}"
            return action if action in admissible else f"go to {place}"
        return self._search(appliance, admissible)

    def _use_toggle(self, admissible: list[str]) -> tuple[str, str]:
        toggle = self.goal.toggle
        for command in admissible:
            if command.startswith(f"use {toggle} "):
                return f"use {toggle}", command
        known = self.memory.places_of(toggle)
        if known:
            return f"go to {toggle}", self._reach(self._nearest(known)[1], admissible) or "look"
        return f"find {toggle}", self._search(toggle, admissible)

    def _reach(self, place: str, admissible: list[str]) -> str:
        """The next step towards using what is in ``place``; empty when nothing is in the way."""
        if f"go to {place}" in admissible:
            return f"go to {place}"
        if f"open {place}" in admissible:
            return f"open {place}"
        return ""

    def _search(self, object_type: str, admissible: list[str]) -> str:
        """Looks into what is in reach, then goes to a place not looked into; when all are, starts over."""
        memory = self.memory
        unseen = [place for place in memory.receptacles if place not in memory.contents]
        for place in unseen:
            for action in (f"open {place}", f"examine {place}"):
                if place in memory.here and action in admissible:
                    return action
        if not unseen:
            memory.contents.clear()
            unseen = [place for place in memory.receptacles if place not in memory.here]
        going = [place for place in unseen if f"go to {place}" in admissible]
        if not going:
            return self._rng.choice([command for command in admissible if command not in _IDLE] or admissible)
        if self._search_order == "listed":
            return f"go to {going[0]}"
        weights = [self._likelihood(place, object_type) for place in going]
        return f"go to {self._rng.choices(going, weights)[0]}"

    def _likelihood(self, place: str, object_type: str) -> float:
        """How likely the object is to be found there; rarely where the goal wants it to be."""
        kind = type_of(place)
        likely = 3.0 if object_type in _HOMES.get(kind, ()) else _LIKELY.get(kind, 1.0)
        is_target = kind == self.goal.parent and object_type == self.goal.object and not self.goal.verb
        return 0.2 * likely if is_target else likely

    def _tidy_up(self, admissible: list[str]) -> str:
        """Some goals also want every receptacle closed: closes what was opened, then looks anew."""
        for place in self.memory.receptacles:
            if place in self.memory.opened:
                closing = f"close {place}"
                return closing if closing in admissible else f"go to {place}"
        return self._search(self.goal.object, admissible)
