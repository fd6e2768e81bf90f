"""A grammar that lacks what a text of the game needs is refused before the first episode."""

from __future__ import annotations

import pytest

from envs.alfworld.domain import Domain, parse_domain
from envs.alfworld.game import package_logic
from envs.alfworld.grammar import parse_grammar
from envs.alfworld.grammar_check import check_texts

LOGIC = package_logic()
pytestmark = pytest.mark.skipif(LOGIC is None, reason="needs the alfworld package")


@pytest.fixture(scope="module")
def domain() -> Domain:
    assert LOGIC is not None
    return parse_domain(LOGIC.domain)


def changed_grammar(old: str, new: str) -> str:
    assert LOGIC is not None and LOGIC.grammar.count(old) == 1
    return LOGIC.grammar.replace(old, new)


def test_the_grammar_of_the_package_has_every_text(domain: Domain) -> None:
    assert LOGIC is not None
    check_texts(parse_grammar(LOGIC.grammar), domain)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"intro"', '"outro"', "no text for #intro#"),
        ('"GotoLocation.feedback":', '"gone":', "no text for #GotoLocation.feedback#"),
        ('"list_last_separator"', '"gone"', "no text for #list_last_separator#"),
        ("action HeatObject", "action MeltObject", r"no text for the actions \['heatobject'\]"),
        ("You close the {r.name}", "You close the {o.name}", r"uses \['o'\] where it is unknown"),
        ("You close the {r.name}", "You close the {r + r.name}", "a value that cannot be written"),
        ("You close the {r.name}", "You close the {r.name or 'it'.id}", "a value that cannot be written"),
        ("You close the {r.name}.", "#CloseObject.feedback#", "#CloseObject.feedback# leads back to itself"),
        ("holdsany(a:agent)", "holdsany(a:agent, o:object)", "'holdsany' takes 1 arguments, not 2"),
        ("holds(a:agent, o:object)}", "keeps(a:agent, o:object)}", "undeclared predicate 'keeps'"),
    ],
)
def test_a_grammar_that_lacks_a_text_is_refused(domain: Domain, old: str, new: str, reason: str) -> None:
    grammar = parse_grammar(changed_grammar(old, new))
    with pytest.raises(ValueError, match=reason):
        check_texts(grammar, domain)


def test_a_symbol_whose_rules_all_have_conditions_is_refused(domain: Domain) -> None:
    grammar = parse_grammar(
        changed_grammar(
            '"rhs": "You are not carrying anything."', '"condition": "holdsany(a:agent)", "rhs": ""'
        )
    )
    with pytest.raises(ValueError, match="no text for #inventory.feedback# that is always there"):
        check_texts(grammar, domain)


def test_what_no_text_leads_to_may_be_missing(domain: Domain) -> None:
    check_texts(parse_grammar(changed_grammar('"notImplemented"', '"never"')), domain)
    check_texts(parse_grammar(changed_grammar("#overview_state(r)#", "#gone#")), domain)
