"""`roadkit chat` against a server process."""

from typer.testing import CliRunner

from roadkit.cli import app
from roadkit.server.client import Client, Talk


def test_two_expressions_answer_side_by_side(server):
    options = ["-m", "quick", "-m", "lazy*0.5", "--say", "jumps over", "--max-tokens", "8"]
    result = CliRunner().invoke(app, ["chat", "--url", f"{server.url}/v1", *options])
    assert result.exit_code == 0, result.output
    assert "quick" in result.output and "lazy*0.5" in result.output


def test_a_refusal_is_shown_in_the_servers_words(server):
    result = CliRunner().invoke(app, ["chat", "--url", f"{server.url}/v1", "-m", "quik", "--say", "hi"])
    assert result.exit_code != 0 and "did you mean 'quick'" in str(result.exception)


def test_a_conversation_remembers(server):
    client = Client(f"{server.url}/v1")
    talk = Talk(client, client.models()[0], max_tokens=4)
    first = "".join(talk.say("the"))
    list(talk.say("quick"))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"] == first
    client.close()
