"""What is found of an agent before its run starts."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from serl.config.load import load_experiment
from serl.models.resolve import EMBEDDED_POLICIES
from serl.run.preflight import examine

AGENT = Path(__file__).resolve().parents[2] / "experiments" / "agent_quickstart.yaml"
THOUGHTS_ARE_LEFT_OUT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def of_agent(*overrides: str) -> list[str]:
    return [f"{f.verdict} {f.subject}: {f.text}" for f in examine(load_experiment(AGENT, overrides))]


def test_an_agents_code_its_template_and_its_port_are_looked_at(tmp_path: Path):
    model = shutil.copytree(EMBEDDED_POLICIES / "tiny_alfworld", tmp_path / "model")
    found = of_agent()
    assert "ok agent: conversations continue the sampled tokens" in found
    assert any(text.startswith("ok gateway: serving.gateway_host = 127.0.0.1") for text in found)
    told = of_agent("env.args.run=envs.agent.example:pley")
    assert any(
        "wrong agent: env.args.run: 'envs.agent.example:pley' cannot be loaded" in text for text in told
    )
    (model / "chat_template.jinja").write_text(THOUGHTS_ARE_LEFT_OUT)
    told = of_agent(f"model.path={model}")
    assert any("writes a thought otherwise once it is history" in text for text in told)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = of_agent(f"serving.gateway_port={taken.getsockname()[1]}")
    assert any(text.startswith("missing gateway: ") and "in use" in text for text in told)
